"""Many heads on the same features are as many runs of their own, and the choice is made on training images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from simsiam.data.datasets import open_dataset
from simsiam.data.subsets import hold_out
from simsiam.errors import UserError
from simsiam.evaluation.accuracy import Accuracy
from simsiam.evaluation.classifier import read_classifier
from simsiam.evaluation.linear import LinearProbe
from simsiam.evaluation.sweep_table import SweepRow, choose, write_sweep
from simsiam.models.encoders import build_encoder

DIGITS = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
COMMON = ("--recipe", "lincls-quickstart", *DIGITS, "--pretrained", "random", "--encoder", "resnet8", "--epochs", 2)
FEW = ("--subset", "40%", "--batch-size", 100, "--held-out", 90)


@pytest.mark.parametrize("more", [(), ("--batchnorm", "--optim.name", "lars", "--optim.weight_decay", 1e-4)])
def test_each_head_of_a_sweep_is_the_head_of_a_run_of_its_own(
    call: Callable[..., int], tmp_path: Path, more: tuple
) -> None:
    given, rates = (*COMMON, *FEW, *more), (3, 30, 300)
    assert call("lincls.py", *given, "--sweep", f"lr={','.join(map(str, rates))}", "--out", tmp_path / "sweep") == 0
    cells = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [cell["lr"] for cell in cells] == list(rates)
    features = torch.rand(64, 64)
    for number, rate in enumerate(rates):
        assert call("lincls.py", *given, "--optim.lr", rate, "--out", tmp_path / str(rate)) == 0
        alone = json.loads((tmp_path / str(rate) / "summary.json").read_text())
        assert (cells[number]["val_top1"], cells[number]["val_top5"]) == (alone["top1"], alone["top5"])
        if cells[number]["chosen"]:
            ours, its = (read_classifier(tmp_path / of / "classifier.safetensors") for of in ("sweep", str(rate)))
            torch.testing.assert_close(ours.head(features), its.head(features), rtol=1e-6, atol=1e-6)
            assert ours.about == its.about
            summary = json.loads((tmp_path / "sweep/summary.json").read_text())
            assert (summary["chosen"], summary["top1"]) == (f"lr={rate}", alone["top1"])
    best = max(cells, key=lambda cell: cell["held_out_top1"])
    assert [cell for cell in cells if cell["chosen"]] == [best]


def test_a_sweep_goes_on_where_it_stopped(call: Callable[..., int], tmp_path: Path) -> None:
    given = (*COMMON, *FEW, "--sweep", "lr=3,300")
    assert call("lincls.py", *given, "--out", tmp_path / "straight") == 0
    assert call("lincls.py", *given, "--out", tmp_path / "twice", "--max-steps", 3) == 0
    assert call("lincls.py", *given, "--out", tmp_path / "twice") == 0
    a, b = (load_file(tmp_path / name / "classifier.safetensors") for name in ("straight", "twice"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "straight/sweep.json").read_text() == (tmp_path / "twice/sweep.json").read_text()


def test_the_choice_does_not_look_at_the_validation_images(tmp_path: Path) -> None:
    rows = [
        SweepRow({"lr": 1}, 50.0, Accuracy(99, 99, 10, 0)),
        SweepRow({"lr": 2}, 60.0, Accuracy(1, 9, 10, 0)),
        SweepRow({"lr": 3}, 60.0, Accuracy(98, 99, 10, 0)),
        SweepRow({"lr": 4}, float("nan")),
    ]
    assert choose(rows) == 1
    text = write_sweep(rows, 1, tmp_path)
    assert text.count("<- chosen") == 1
    assert "diverged" in text
    assert json.loads((tmp_path / "sweep.json").read_text())[3] == {"lr": 4, "held_out_top1": None, "chosen": False}


def test_held_out_images_are_training_images_of_each_class_and_never_trained_on() -> None:
    images = open_dataset("digits", "train")
    rest, held = hold_out(images, 100)
    assert len(rest) + len(held) == len(images)
    assert not {rest.name(n) for n in range(len(rest))} & {held.name(n) for n in range(len(held))}
    assert np.bincount(held.labels).tolist() == [10] * 10
    with pytest.raises(UserError, match="too few training images"):
        hold_out(hold_out(images, 10)[1], 10)  # one image a class, and all would be held out


def test_a_folded_batch_norm_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    probe = LinearProbe(build_encoder("resnet8"), 5, batchnorm=True)
    for _ in range(20):
        probe(torch.randn(32, 64) * torch.rand(64) + torch.rand(64), torch.arange(32) % 5)
    features = torch.rand(16, 64)
    torch.testing.assert_close(probe.eval().logits(features)[0], probe.classifier()(features), rtol=1e-4, atol=1e-5)
