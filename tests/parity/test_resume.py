"""A killed run goes on as if nothing had happened."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.conftest import ROOT, clean_environment, command_line

SMALL = (
    "--recipe", "quickstart", "--data", "digits", "--precision", "fp32", "--batch-size", 64, "--max-steps", 40,
    "--log-every", 1, "--knn-every", 0, "--hide-progress", "--checkpoint.every_steps", 17,
    "--checkpoint.every_epochs", 0, "--views.size", 16, "--views.resize", 16,
)  # fmt: skip


def state_at(checkpoint: Path) -> dict[str, torch.Tensor]:
    reader = dcp.FileSystemReader(checkpoint)
    held = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
    }
    dcp.load(held, storage_reader=reader, no_dist=True)
    return held


def logged(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step was logged twice"
    return {line["step"]: line["loss"] for line in lines}


def kill_after(checkpoint: Path, arguments: tuple) -> None:
    process = subprocess.Popen(
        command_line("pretrain.py", *arguments),
        cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--optim.name", "lars", "--accumulate", 2),
        ("--data", "shapes", "--loader", "torchvision", "--workers", 1),
        ("--data", "shapes", "--loader", "dali", "--workers", 1),
    ],
    ids=["sgd", "lars, accumulated", "torchvision", "dali"],
)
def test_a_killed_run_resumes_bit_equal(launch, tmp_path: Path, more: tuple) -> None:
    launch("pretrain.py", *SMALL, *more, "--out", tmp_path / "straight")
    arguments = (*SMALL, *more, "--out", tmp_path / "killed")
    kill_after(tmp_path / "killed/checkpoints/step_00000017", arguments)
    assert not (tmp_path / "killed/completed").exists()
    launch("pretrain.py", *arguments)
    straight, killed = (state_at(tmp_path / name / "checkpoints/step_00000040") for name in ("straight", "killed"))
    assert straight.keys() == killed.keys()
    assert any(key.endswith("momentum_buffer") for key in straight)
    assert [key for key in straight if not torch.equal(straight[key], killed[key])] == []
    assert logged(tmp_path / "straight") == logged(tmp_path / "killed")


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(launch, tmp_path: Path) -> None:
    # Rounding differs between rank counts and grows by training itself: past 1e-4 some 15 steps after the change.
    settings = (*SMALL, "--optim.lr", 0.03, "--max-steps", 29)
    launch("pretrain.py", *settings, "--out", tmp_path / "straight")
    launch("pretrain.py", *settings, "--max-steps", 17, "--out", tmp_path / "moved")
    launch("pretrain.py", *settings, "--out", tmp_path / "moved", ranks=2)
    straight, moved = logged(tmp_path / "straight"), logged(tmp_path / "moved")
    assert straight.keys() == moved.keys()
    assert list(moved.values()) == pytest.approx(list(straight.values()), abs=1e-4)


@pytest.mark.slow
def test_a_run_on_two_ranks_resumes_bit_equal(launch, tmp_path: Path) -> None:
    launch("pretrain.py", *SMALL, "--out", tmp_path / "straight", ranks=2)
    launch("pretrain.py", *SMALL, "--max-steps", 17, "--out", tmp_path / "stopped", ranks=2)
    launch("pretrain.py", *SMALL, "--out", tmp_path / "stopped", ranks=2)
    straight, stopped = (state_at(tmp_path / name / "checkpoints/step_00000040") for name in ("straight", "stopped"))
    assert [key for key in straight if not torch.equal(straight[key], stopped[key])] == []
    assert logged(tmp_path / "straight") == logged(tmp_path / "stopped")
