"""Ranks that stand still with all that they hold: found in time, named, their stacks written; then as after a kill."""

import signal
from pathlib import Path

import pytest

from simsiam.distributed.watchdog import EXIT_CODE
from tests.faults.harness import SHORT, a_fault, check_goes_on, run, sentences

TIMEOUT = ("--hang-timeout", 5)


@pytest.mark.parametrize("kind", ["stop", pytest.param("lock held", marks=pytest.mark.faults)])
def test_a_rank_that_stands_still_is_named_and_ended(undisturbed: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    # Once it has said that it trains: a fast machine is at its seventh step before the rank has said anything again.
    fault = {**a_fault(tmp_path, kind, "forward", 7, 1), "after": 1.5}
    assert run(2, out, *SHORT, *TIMEOUT, fault=fault) == [EXIT_CODE, -signal.SIGKILL]
    (told,) = sentences(out, "error: ")
    assert told.startswith("error: the run hangs: nothing is heard for ")
    assert " of rank 1 (training after step " in told
    assert str(out / "stacks") in told
    assert "in forward" in (out / "stacks/rank_00000.txt").read_text()
    check_goes_on(out, undisturbed)


@pytest.mark.faults
def test_rank_0_that_stands_still_is_found_by_the_other(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    codes = run(2, out, *SHORT, *TIMEOUT, fault=a_fault(tmp_path, "stop", "forward", 7, 0))
    assert codes == [-signal.SIGKILL, EXIT_CODE]
    assert "or stands still, perhaps rank 0 (" in sentences(out, "error: ")[0]
    check_goes_on(out, undisturbed)
