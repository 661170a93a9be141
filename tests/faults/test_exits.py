"""How a run ends by what is not its own: a user's mistake in code, Ctrl-C, a reader that goes away."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.harness import (
    RUN,
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
    sentences,
    start,
    wait,
)

MISTAKEN = """
import os

from simsiam.methods.simsiam import SimSiam


class Mistaken(SimSiam):
    def forward(self, *views):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 8 and os.environ["RANK"] == "1":
            raise LookupError("a mistake of the user")
        return super().forward(*views)
"""


def test_a_mistake_in_a_users_method_on_one_rank_is_shown_and_ends_all(tmp_path: Path) -> None:
    file, out = tmp_path / "own.py", tmp_path / "run"
    file.write_text(MISTAKEN)
    assert run(2, out, *SHORT, "--method", f"{file}:Mistaken") == [1, 1]
    assert "LookupError: a mistake of the user" in said(out)
    assert f'{file}", line 11, in forward' in said(out)
    assert (out / "failed").exists()
    assert (checkpoint(out, 5) / "manifest.json").exists()
    assert left_behind(out) == []


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_save_and_end(undisturbed: str, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "step", 7, 0)
    processes = start(2, out, *SHORT, fault=fault)
    go_on = holding(fault, processes)
    kill(processes, number)
    go_on.touch()
    assert wait(processes) == [0, 0]
    assert f"it was asked to end ({number.name}) and has, at step {max(logged(out))}, saved in " in said(out)
    assert "Traceback" not in said(out)
    check_goes_on(out, undisturbed)


def test_ctrl_c_before_the_first_step_is_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "start", 0, 0)
    processes = start(1, out, *SHORT, fault=fault)
    holding(fault, processes)
    kill(processes, signal.SIGINT)
    assert wait(processes) == [128 + signal.SIGINT]
    assert "Traceback" not in said(out)
    assert said(out).endswith("interrupted\n")


def test_a_reader_that_goes_away_costs_nothing(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "step", 1, 0)
    reading, writing = os.pipe()
    with subprocess.Popen(["head", "-1"], stdin=reading, stdout=subprocess.PIPE) as head:
        os.close(reading)
        loud = [word for word in RUN if word != "--hide-progress"]
        processes = start(2, out, *SHORT, settings=loud, fault=fault, stdout=writing)
        os.close(writing)
        go_on = holding(fault, processes)
        assert head.stdout.read().startswith(b"      method  simsiam")
    go_on.touch()
    assert wait(processes) == [0, 0]
    assert "Broken pipe" not in said(out)
    assert sentences(out, "error: ") == []
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []
