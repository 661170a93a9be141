"""Every method trains through pretrain.py: its loss falls, it does not collapse, and kNN gets better than random."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simsiam.methods.registry import METHODS

SMALL = (
    "--recipe", "quickstart", "--views.size", 8, "--views.resize", 8, "--epochs", 3, "--log-every", 6,
    "--knn-every", 3, "--workers", 0, "--hide-progress", "--precision", "fp32", "--checkpoint.every_epochs", 0,
)  # fmt: skip
HEAD = ("--method.dim", 64, "--method.projector_layers", 2, "--method.projector_hidden", 128)
ADAM = ("--optim.name", "adam", "--optim.lr", 0.004, "--optim.weight_decay", 0, "--optim.schedule", "constant")
# Without batch-norm on the output a collapse comes near 0, and random weights begin far below 1.
NO_OUTPUT_NORM = ("--health.collapsed_std", 0.15)
# Momentum networks, and a queue that has to fill, need more steps than three epochs of the digits.
SHAPES = ("--data", "shapes", "--views.size", 16, "--views.resize", 16, "--epochs", 1, "--knn-every", 1)
OPTIONS = {
    "simsiam": (),
    "simsiam-alternating": ("--method.alternate_steps", 10),
    "simsiam-moving-average": (),
    "simclr": HEAD,
    "moco": (
        *SHAPES, *HEAD, "--method.queue_size", 128, "--method.batchnorm", "synced", "--optim.lr", 0.12,
        *NO_OUTPUT_NORM,
    ),
    "byol": (
        *SHAPES, "--method.dim", 64, "--method.projector_hidden", 128,
        "--method.predictor_hidden", 128, "--optim.lr", 0.12,
    ),
    "swav": (
        *HEAD, "--method.prototypes", 128, "--method.freeze_steps", 22, *ADAM, "--optim.lr", 0.008, *NO_OUTPUT_NORM,
    ),
    "adv": (*HEAD, "--method.discriminator_epochs", 0.5, "--method.encoder_every", 2, *ADAM),
    "adv-mmd": (*HEAD, *ADAM),
    "joint": (*HEAD, *ADAM),
    "e2e-baseline": (*HEAD, *ADAM),
    "no-sg": (),
    "no-sg-alt": (),
}  # fmt: skip
ELSEWHERE = {"simsiam-kd", "simsiam-kd-anchor"}  # with their teacher: test_distillation.py


def test_no_method_is_left_out() -> None:
    assert set(OPTIONS) | ELSEWHERE == set(METHODS)


@pytest.mark.parametrize("method", OPTIONS)
def test_loss_falls_nothing_collapses_and_knn_beats_random(
    call: Callable[..., int], tmp_path: Path, method: str
) -> None:
    options = OPTIONS[method]
    data = () if "--data" in options else ("--data", "digits")
    assert call("pretrain.py", *SMALL, *data, "--method.name", method, *options, "--out", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    knn = [line["knn"] for line in lines if "knn" in line]
    losses = [line["loss"] for line in trained]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert "collapsed" not in {line["verdict"] for line in trained}
    assert knn[-1] > knn[0]
