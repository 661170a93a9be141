"""Ranks that are killed, crash or run out of memory: the others end by themselves, and the run goes on to the bit."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.harness import SHORT, a_fault, check_goes_on, checkpoint, kill, run, said, start, wait, wait_for


@pytest.mark.parametrize(
    "point",
    [
        "copy",
        pytest.param("forward", marks=pytest.mark.faults),
        pytest.param("optimiser", marks=pytest.mark.faults),
        pytest.param("before rename", marks=pytest.mark.faults),
    ],
)
def test_a_kill_at_more_points_than_those_of_test_run(undisturbed: str, tmp_path: Path, point: str) -> None:
    out = tmp_path / "run"
    codes = run(2, out, *SHORT, fault=a_fault(tmp_path, "kill", point, 7, 0))
    assert codes[0] == -signal.SIGKILL
    assert codes[1] > 0
    check_goes_on(out, undisturbed)


def test_a_kill_when_the_checkpoint_is_half_loaded(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(2, out, "--max-steps", 6) == [0, 0]
    codes = run(2, out, *SHORT, fault=a_fault(tmp_path, "kill", "load", 0, 1))
    assert codes[1] == -signal.SIGKILL
    assert codes[0] > 0
    check_goes_on(out, undisturbed)


def test_a_kill_of_all_at_once(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start(2, out, *SHORT)
    wait_for(checkpoint(out, 5) / "manifest.json", processes)
    kill(processes, signal.SIGSTOP)  # or one might see the other's end before its own
    kill(processes)
    assert wait(processes) == [-signal.SIGKILL] * 2
    check_goes_on(out, undisturbed)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("memory", 1),
        pytest.param("segfault", -signal.SIGSEGV, marks=pytest.mark.faults),
        pytest.param("abort", -signal.SIGABRT, marks=pytest.mark.faults),
    ],
)
def test_a_rank_that_crashes_takes_the_others_with_it(undisturbed: str, tmp_path: Path, kind: str, code: int) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, fault=a_fault(tmp_path, kind, "forward", 7, 1)) == [1, code]
    assert ("MemoryError" in said(out)) == (kind == "memory")
    assert (out / "failed").exists()
    check_goes_on(out, undisturbed)


@pytest.mark.faults
def test_nothing_is_left_in_shared_memory_when_all_are_killed_with_their_workers_at_work(
    undisturbed: str, tmp_path: Path
) -> None:
    out, before = tmp_path / "run", set(os.listdir("/dev/shm"))
    workers = ("--loader", "torchvision", "--workers", 2)
    processes = start(2, out, *SHORT, *workers)
    wait_for(checkpoint(out, 5) / "manifest.json", processes)
    pids = {str(process.pid) for process in processes}
    kill(processes, signal.SIGSTOP)
    kill(processes)
    left = set(os.listdir("/dev/shm")) - before
    assert not [name for name in left if pids & set(name.split("_"))]
    check_goes_on(out, undisturbed, *workers)
