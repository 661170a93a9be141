"""Processes of a loader that are killed, stopped or fail: a clear end in time, and the run goes on to the bit."""

import os
import signal
import time
from pathlib import Path

import pytest

from simsiam.distributed.watchdog import EXIT_CODE
from tests.faults.harness import (
    SHORT,
    STEPS,
    a_fault,
    check_goes_on,
    digest,
    holding,
    run,
    said,
    sentences,
    start,
    wait,
)
from tests.processes import children

WORKERS = ("--loader", "torchvision", "--workers", 1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("kill", "is killed by signal: Killed"),
        pytest.param("exception", "on purpose", marks=pytest.mark.faults),
    ],
)
def test_a_worker_that_ends_ends_the_run(undisturbed: str, tmp_path: Path, kind: str, says: str) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, *WORKERS, fault=a_fault(tmp_path, kind, "worker", 9, 1)) == [1, 1]
    assert says in said(out)
    check_goes_on(out, undisturbed, *WORKERS)


@pytest.mark.faults
def test_a_worker_is_not_ended_by_a_signal_that_is_for_its_rank(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, *WORKERS, fault=a_fault(tmp_path, "term", "worker", 9, 1)) == [0, 0]
    assert digest(out, STEPS) == undisturbed


@pytest.mark.faults
def test_a_worker_that_stands_still_is_found_and_does_not_outlive_its_rank(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "step", 4, 1)
    processes = start(2, out, *SHORT, *WORKERS, "--hang-timeout", 5, fault=fault)
    go_on = holding(fault, processes)
    (worker,) = children(processes[1])
    os.kill(worker, signal.SIGSTOP)
    go_on.touch()
    assert wait(processes) == [EXIT_CODE, EXIT_CODE]
    assert "missing: rank 1 (training after step " in sentences(out, "error: ")[0]
    assert "dataloader.py" in (out / "stacks/rank_00001.txt").read_text()
    until = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until, "the worker outlives its rank"
        time.sleep(0.05)
    check_goes_on(out, undisturbed, *WORKERS)
