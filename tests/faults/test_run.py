"""Two ranks that are killed, asked to end or spoiled inside: what goes on is the undisturbed run, to the bit."""

import signal
from pathlib import Path

import pytest

from tests.faults.harness import (
    SHORT,
    STEPS,
    a_fault,
    checkpoint,
    digest,
    kill,
    left_behind,
    logged,
    run,
    said,
    start,
    wait,
    wait_for,
)


@pytest.mark.parametrize(
    ("point", "rank"), [("all-reduce", 1), ("shard", 1), ("after rename", 0), ("before latest", 0), ("delete", 0)]
)
def test_a_run_that_is_killed_anywhere_goes_on_to_the_bit(
    undisturbed: str, tmp_path: Path, point: str, rank: int
) -> None:
    out = tmp_path / "run"
    codes = run(2, out, *SHORT, fault=a_fault(tmp_path, "kill", point, 7, rank))
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (0, None)
    assert run(2, out, *SHORT) == [0, 0]
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []


def test_a_signal_to_one_rank_ends_all_at_one_step_and_the_run_goes_on(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start(2, out, *SHORT)
    wait_for(out / "checkpoints/latest", processes)
    kill(processes[1:], signal.SIGUSR1)
    assert wait(processes) == [0, 0]
    assert (out / "preempted").exists()
    step = max(logged(out))
    assert 5 <= step < STEPS
    assert str(checkpoint(out, step)) in said(out)
    assert left_behind(out) == []
    assert run(2, out, *SHORT) == [0, 0]
    assert digest(out, STEPS) == undisturbed
    assert not (out / "preempted").exists()


@pytest.mark.parametrize("kind", ["nan-gradient", "inf-loss"])
def test_what_is_not_finite_on_one_rank_is_named_and_never_saved(undisturbed: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, fault=a_fault(tmp_path, kind, "step", 7, 1)) == [3, 3]
    assert "not finite at step 8 on rank 1;" in said(out)
    assert str(checkpoint(out, 5)) in said(out)
    assert run(2, out, *SHORT) == [0, 0]
    assert digest(out, STEPS) == undisturbed


def test_ranks_that_come_apart_by_a_bit_stop_before_they_save(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, fault=a_fault(tmp_path, "flip", "step", 9, 1)) == [3, 3]
    assert "at step 10 the ranks hold different states, first in model.encoder.conv1.weight on rank 1;" in said(out)
    assert run(2, out, *SHORT) == [0, 0]
    assert digest(out, STEPS) == undisturbed
