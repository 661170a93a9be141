"""Real torchruns whose ranks are killed one after the other, or that are killed themselves."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment
from tests.faults.harness import RUN, SHORT, STEPS, Fault, a_fault, digest, left_behind, run, said
from tests.faults.test_cycles import OFTEN, newest
from tests.processes import children, runs, wait_until

KILLS = 50
Starter = Callable[..., subprocess.Popen]


@pytest.fixture
def torchrun() -> Iterator[Starter]:
    """`torchrun(out, *arguments, script=..., restarts=..., fault=...)` starts two ranks, which write to OUT.log."""
    started: list[subprocess.Popen] = []

    def start(
        out: Path, *arguments: object, script: str = "pretrain.py", restarts: int = 0, fault: Fault | None = None
    ) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [f"--max-restarts={restarts}", script, *map(str, (*RUN, *arguments)), "--out", str(out)]
        with Path(f"{out}.log").open("a") as log:
            env = {**clean_environment(), "FAULT": json.dumps(fault)}
            started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
        return started[-1]

    yield start
    for agent in started:
        for pid in [*ranks_of(agent).values(), agent.pid] if agent.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        agent.wait()


@pytest.mark.faults
@pytest.mark.timeout(3 * 3600)
def test_torchrun_recovers_from_each_of_50_kills(torchrun: Starter, tmp_path: Path) -> None:
    out, draw, costs = tmp_path / "run", random.Random(3), []
    settings = (*OFTEN, "--max-steps", 12 * KILLS)
    agent = torchrun(out, *settings, restarts=KILLS)
    for _ in range(KILLS):
        step = newest(out) + draw.randint(1, 4)
        wait_until(lambda step=step: newest(out) >= step, 300, [agent])
        os.kill(ranks_of(agent)[draw.randint(0, 1)], signal.SIGKILL)
        costs.append(len(os.listdir(f"/proc/{agent.pid}/fd")))
    # As many restarts as kills were allowed: none was spent on anything else.
    assert agent.wait(600) == 0, said(out)[-3000:]
    assert left_behind(out) == []
    assert run(2, tmp_path / "undisturbed", *settings) == [0, 0]
    assert digest(out, 12 * KILLS) == digest(tmp_path / "undisturbed", 12 * KILLS)
    assert max(costs[10:]) <= max(costs[:10]) + 5, costs  # a restart leaves no file of the agent's open


def test_ranks_end_with_a_torchrun_that_is_killed_and_the_run_goes_on(
    torchrun: Starter, undisturbed: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fault = a_fault(tmp_path, "hold", "step", 7, 1)
    agent = torchrun(out, *SHORT, script="tests/faults/drive.py", fault=fault)
    wait_until(Path(fault["once"]).exists, 300, [agent])
    ranks = ranks_of(agent)
    agent.kill()
    agent.wait()
    wait_until(lambda: not any(map(runs, ranks.values())), 30)
    assert (out / "run.lock").exists()

    assert run(2, out, *SHORT) == [0, 0]
    assert "run.lock of process" in said(out)
    assert "is taken over: its process is gone" in said(out)
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []


def ranks_of(agent: subprocess.Popen) -> dict[int, int]:
    """Process numbers of a torchrun's ranks."""
    found = {}
    for pid in children(agent):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks = [int(each[5:]) for each in variables if each.startswith(b"RANK=")]
            found |= dict.fromkeys(ranks, pid)
    return found
