"""Signals at awkward moments: in a save, in the last step, in an evaluation, before all steps, and two of them."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.faults.harness import (
    SHORT,
    STEPS,
    a_fault,
    check_goes_on,
    checkpoint,
    digest,
    holding,
    kill,
    left_behind,
    logged,
    run,
    said,
    start,
    wait,
)
from tests.processes import children

LOOKING = ("--knn-every", 1)


def check_preempted(out: Path) -> int:
    """Asserts that a run ended as asked, with a checkpoint of its last step; that step."""
    assert (out / "preempted").exists()
    step = max(logged(out))
    assert step < STEPS
    assert f"has, at step {step}, saved in {checkpoint(out, step)}" in said(out)
    assert left_behind(out) == []
    return step


@pytest.mark.parametrize("point", ["before rename", pytest.param("copy", marks=pytest.mark.faults)])
def test_a_signal_in_a_save_makes_another_save_and_not_the_same_one_twice(
    undisturbed: str, tmp_path: Path, point: str
) -> None:
    out, saves = tmp_path / "run", ("--checkpoint.every_steps", 10)
    assert run(2, out, *SHORT, *saves, fault=a_fault(tmp_path, "term", point, 10, 0)) == [0, 0]
    step = check_preempted(out)
    assert step > 10
    assert sorted(out.glob("checkpoints/step_*")) == [checkpoint(out, 10), checkpoint(out, step)]
    check_goes_on(out, undisturbed, *saves)


@pytest.mark.faults
@pytest.mark.parametrize("point", ["forward", "evaluation"])
def test_a_signal_in_the_last_step_or_the_evaluation_after_it_comes_too_late_to_cut_the_run(
    undisturbed: str, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, *LOOKING, fault=a_fault(tmp_path, "term", point, 15, 1)) == [0, 0]
    assert (out / "completed").exists()
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []


@pytest.mark.faults
def test_a_signal_in_the_first_step_is_heard(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(2, out, *SHORT, fault=a_fault(tmp_path, "term", "forward", 0, 1)) == [0, 0]
    assert check_preempted(out) <= 3
    check_goes_on(out, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("point", ["evaluation", "start"])
def test_a_signal_before_the_first_step_ends_all_and_costs_nothing(
    undisturbed: str, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "run"
    codes = run(2, out, *SHORT, *LOOKING, fault=a_fault(tmp_path, "term", point, 0, 1))
    assert codes == [1, -signal.SIGTERM]
    check_goes_on(out, undisturbed)


def test_one_wish_by_many_ways_to_all_ranks_and_their_workers_is_one(undisturbed: str, tmp_path: Path) -> None:
    """As from a closed terminal or `scancel --full`; the workers have two more steps to deliver."""
    out = tmp_path / "run"
    workers = ("--loader", "torchvision", "--workers", 1)
    fault = a_fault(tmp_path, "hold", "step", 7, 0)
    processes = start(2, out, *SHORT, *workers, fault=fault)
    go_on = holding(fault, processes)
    everyone = [pid for process in processes for pid in (process.pid, *children(process))]
    assert len(everyone) >= 4
    for pid in everyone:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGTERM)
    go_on.touch()
    assert wait(processes) == [0, 0]
    check_preempted(out)
    check_goes_on(out, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_second_signal_ends_at_once_and_the_earlier_checkpoint_is_whole(
    undisturbed: str, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "shard", 10, 0)
    processes = start(2, out, *SHORT, fault=fault)
    holding(fault, processes)  # for ever: a disk that takes no more
    kill(processes, number)
    time.sleep(3)  # within 2 s it would be the same wish
    keep_asking(processes, number)
    codes = wait(processes)
    assert 128 + number in codes
    assert set(codes) <= {128 + number, 1}  # one may see the other's end before its own second signal
    assert (out / "checkpoints/latest").read_text() == "step_00000005\n"
    check_goes_on(out, undisturbed)


def keep_asking(processes: list[BaseProcess], number: signal.Signals) -> None:
    """A busy machine may have seen the first signal late, and the second as the same."""
    for _ in range(60):
        kill(processes, number)
        for process in processes:
            process.join(0.25)
        if not any(process.is_alive() for process in processes):
            return


@pytest.mark.faults
def test_a_save_that_takes_longer_than_the_grace_is_cut_and_the_one_before_is_whole(
    undisturbed: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "before rename", 10, 0)
    processes = start(2, out, *SHORT, fault=fault)
    holding(fault, processes)
    kill(processes, signal.SIGTERM)
    time.sleep(1)
    assert [process.exitcode for process in processes] == [None, None]
    kill(processes)
    assert wait(processes) == [-signal.SIGKILL] * 2
    assert (out / "checkpoints/latest").read_text() == "step_00000005\n"
    check_goes_on(out, undisturbed)


@pytest.mark.faults
def test_a_run_under_nohup_does_not_end_with_its_terminal(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "step", 7, 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the ranks inherit it
    try:
        processes = start(2, out, *SHORT, fault=fault)
    finally:
        signal.signal(signal.SIGHUP, before)
    go_on = holding(fault, processes)
    kill(processes, signal.SIGHUP)
    go_on.touch()
    assert wait(processes) == [0, 0]
    assert (out / "completed").exists()
    assert digest(out, STEPS) == undisturbed
