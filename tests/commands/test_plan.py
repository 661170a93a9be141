"""simsiam plan: the arithmetic of a forecast, and the lines that come of a few steps."""

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from simsiam.__main__ import main
from simsiam.commands import forecast as module
from simsiam.commands.forecast import Forecast, Measured, forecast
from simsiam.training.state import TrainState

NETWORK = "the network between the GPUs"
STEP = Measured(images=32, seconds=0.3, bytes=5_000_000_000, half_bytes=3_000_000_000)


def test_memory_is_a_part_that_is_there_and_a_part_for_each_image() -> None:
    assert STEP.bytes_at(32) == 5e9
    assert STEP.bytes_at(16) == 3e9
    assert STEP.bytes_at(0) == 1e9
    assert STEP.bytes_at(64) == 9e9


def test_gradients_go_twice_round_the_ring_and_norms_cost_two_collectives_each() -> None:
    parts = forecast(STEP, 8, 153_000_000, 57, 12.5e9, loader=None)
    assert parts.gradients == pytest.approx(2 * 7 / 8 * 153e6 / 12.5e9)
    assert parts.statistics == pytest.approx(114 * 25e-6)
    alone = forecast(STEP, 1, 153_000_000, 57, 12.5e9, loader=200)
    assert (alone.gradients, alone.statistics, alone.loader) == (0, 0, 32 / 200)


@pytest.mark.parametrize(
    ("parts", "step", "limit"),
    [
        (Forecast(compute=0.3, gradients=0.1, statistics=0.01, loader=0.2), 0.31, "the GPU"),
        (Forecast(compute=0.3, gradients=0.1, statistics=0.01, loader=0.5), 0.5, "the loader"),
        (Forecast(compute=0.3, gradients=0.8, statistics=0.01, loader=0), 0.91, f"{NETWORK} (gradients)"),
        (Forecast(compute=0.3, gradients=0.1, statistics=0.5, loader=0), 0.8, f"{NETWORK} (batch-norm statistics)"),
    ],
)  # fmt: skip
def test_what_binds_is_named(parts: Forecast, step: float, limit: str) -> None:
    assert parts.step == pytest.approx(step)
    assert parts.limit == limit


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simsiam", "plan", *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


SMALL = ("--recipe", "quickstart", "--data", "digits", "--steps", "1")


def test_the_lines_of_a_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, *SMALL, "--gpus", "4", "--settings", "--views.size", "16", "--views.resize", "16") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["plan", "loader", "step", "time", "memory", "limit"]
    assert "batch 64 = 4 GPUs x 1 x 16" in lines["plan"]
    seconds = float(re.match(r"[\d.]+", lines["step"])[0])
    rate = float(re.search(r"([\d,]+) pairs/s", lines["time"])[1].replace(",", ""))
    assert rate == pytest.approx(64 / seconds, rel=0.1)
    assert "12 epochs of 1,437 images" in lines["time"]


def test_a_batch_that_does_not_fit_is_forecast_from_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def train_step(state: TrainState, micro_batches: list[tuple[Tensor, ...]]) -> object:
        if micro_batches[0][0].shape[1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(state, micro_batches)

    step = module.train_step
    monkeypatch.setattr(module, "train_step", train_step)
    assert run(monkeypatch, *SMALL, "--gpus", "2", "--settings", "--views.size", "16", "--views.resize", "16") == 0
    out = capsys.readouterr().out
    assert re.search(r"^memory +32 images a GPU do not fit; measured on 8 at a time$", out, re.MULTILINE)
    assert re.search(r"GiB at 32 images a GPU; \d+ images fit", out)


@pytest.mark.parametrize(
    ("gpus", "says"), [("5", "does not divide over 5 ranks"), ("32", "--gpus 32 leaves 2 image(s) a GPU")]
)
def test_a_batch_that_the_gpus_cannot_share_is_one_sentence(
    gpus: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, *SMALL, "--gpus", gpus) == 2
    assert says in capsys.readouterr().err


def test_settings_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, *SMALL, "--settings", "--compile", "true", "--recompute", "true") == 2
    assert "--compile and --recompute cannot be had together" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = "import sys, simsiam.commands.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
