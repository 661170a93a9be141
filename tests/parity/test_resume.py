"""A killed run goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch

from tests.faults.harness import kill, logged, run, start, state_at, wait_for

SMALL = (
    "--recipe", "quickstart", "--data", "digits", "--precision", "fp32", "--batch-size", 64, "--max-steps", 40,
    "--log-every", 1, "--knn-every", 0, "--hide-progress", "--checkpoint.every_steps", 17,
    "--checkpoint.every_epochs", 0, "--views.size", 8, "--views.resize", 8,
)  # fmt: skip


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
def test_a_killed_run_resumes_bit_equal(tmp_path: Path, more: tuple) -> None:
    assert run(1, tmp_path / "straight", *more, settings=SMALL) == [0]
    processes = start(1, tmp_path / "killed", *more, settings=SMALL)
    wait_for(tmp_path / "killed/checkpoints/step_00000017", processes)
    kill(processes)
    assert not (tmp_path / "killed/completed").exists()
    assert run(1, tmp_path / "killed", *more, settings=SMALL) == [0]
    straight, killed = (state_at(tmp_path / name / "checkpoints/step_00000040") for name in ("straight", "killed"))
    assert straight.keys() == killed.keys()
    assert any(key.endswith("momentum_buffer") for key in straight)
    assert [key for key in straight if not torch.equal(straight[key], killed[key])] == []
    assert logged(tmp_path / "straight") == logged(tmp_path / "killed")


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    # Rounding differs between rank counts and grows by training itself: past 1e-4 some 15 steps after the change.
    settings = (*SMALL, "--optim.lr", 0.03, "--max-steps", 29)
    assert run(1, tmp_path / "straight", settings=settings) == [0]
    assert run(1, tmp_path / "moved", "--max-steps", 17, settings=settings) == [0]
    assert run(2, tmp_path / "moved", settings=settings) == [0, 0]
    straight, moved = logged(tmp_path / "straight"), logged(tmp_path / "moved")
    assert straight.keys() == moved.keys()
    assert list(moved.values()) == pytest.approx(list(straight.values()), abs=1e-4)


@pytest.mark.slow
def test_a_run_on_two_ranks_resumes_bit_equal(tmp_path: Path) -> None:
    assert run(2, tmp_path / "straight", settings=SMALL) == [0, 0]
    assert run(2, tmp_path / "stopped", "--max-steps", 17, settings=SMALL) == [0, 0]
    assert run(2, tmp_path / "stopped", settings=SMALL) == [0, 0]
    straight, stopped = (state_at(tmp_path / name / "checkpoints/step_00000040") for name in ("straight", "stopped"))
    assert [key for key in straight if not torch.equal(straight[key], stopped[key])] == []
    assert logged(tmp_path / "straight") == logged(tmp_path / "stopped")
