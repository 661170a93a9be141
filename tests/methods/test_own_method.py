"""The example of docs/methods.md is a method: it learns by its command, and is the same on any number of ranks."""

import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simsiam.methods.base import Method
from simsiam.methods.registry import build_method, method_class
from tests.conftest import ROOT
from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import reference, tiny_encoder
from tests.ranks import run_ranks

SECTION = (ROOT / "docs/methods.md").read_text().partition("## Your own\n")[2]
EXAMPLE = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
COMMAND = re.search(r"```\n(python pretrain.py .*?)\n```", SECTION)[1]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = re.search(r"Save this as `(.*?)`", SECTION)[1]
    path = tmp_path_factory.mktemp("own") / file
    path.write_text(EXAMPLE)
    return str(path)


def build(file: str) -> Method:
    torch.manual_seed(1)
    return build_method({"name": f"{file}:BarlowTwins", "dim": 8}, tiny_encoder())


def test_the_command_of_the_document_trains_it(call, example: str, tmp_path: Path, monkeypatch) -> None:
    assert len(EXAMPLE.splitlines()) <= 32
    script, *words = shlex.split(COMMAND)[1:]
    monkeypatch.chdir(Path(example).parent)
    small = ("--data", "digits", "--views.size", 16, "--views.resize", 16, "--max-steps", 12, "--log-every", 1)
    quiet = ("--workers", 0, "--knn-every", 0, "--hide-progress", "--device", "cpu", "--out", tmp_path)
    assert call(script, *words, *small, *quiet) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == "ok"
    assert "dim: 128" in (tmp_path / "config.yaml").read_text()


def test_its_loss_is_the_papers(example: str) -> None:
    method = build(example)
    exact = reference(method)
    (views,) = some_batches(1, (2, 8))[0]
    za, zb = (exact.projector(exact.encoder(view)) for view in views)
    n, d = za.shape
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(d):
        for j in range(d):
            a, b = za[:, i] - za[:, i].mean(), zb[:, j] - zb[:, j].mean()
            c = (a / a.std(unbiased=False) * b / b.std(unbiased=False)).sum() / n
            expected = expected + ((1 - c) ** 2 if i == j else 0.0051 * c**2)
    assert method(views.float()).loss.item() == pytest.approx(expected.item(), rel=1e-3)  # batch-norm has an epsilon


def whole(file: str) -> tuple:
    return outcome(functools.partial(build, file), some_batches(2, (2, 8)))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_make_the_steps_of_one(example: str, ranks: int) -> None:
    assert method_class(f"{example}:BarlowTwins").__name__ == "BarlowTwins"
    alone = whole(example)
    assert alone[1]["encoder.0.weight"].abs().max() > 1e-3
    for together in run_ranks(ranks, whole, example):
        assert_same(together, alone, atol=1e-4)


def test_a_run_that_stops_goes_on_bit_equal(example: str) -> None:
    def batches() -> list[tuple[Tensor, ...]]:
        return [tuple(v.float() for v in batch) for batch in some_batches(4, (2, 8))]

    straight = start(build(example))
    go_on(straight, batches())
    for name, tensor in resumed(functools.partial(build, example), batches(), 2).items():
        assert torch.equal(tensor, straight.tensors()[name]), name
