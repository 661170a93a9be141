"""Ranks end when they must: with the agent that started them, and with their own exit code after an exception."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment

ENVIRONMENT = {**clean_environment(), "PYTHONPATH": str(ROOT)}

WAITS = """
import os, pathlib, sys, time
from simsiam.distributed.runtime import running

with running("cpu") as runtime:
    runtime.barrier()
    (pathlib.Path(sys.argv[1]) / f"pid_{runtime.rank}").write_text(str(os.getpid()))
    time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_ranks_do_not_outlive_a_killed_agent(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    agent = subprocess.Popen(
        [*command, str(tmp_path / "waits.py"), str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    files = [tmp_path / "pid_0", tmp_path / "pid_1"]
    try:
        assert within(120, lambda: all(file.exists() and file.read_text() for file in files))
    finally:
        agent.kill()
        agent.wait()
    assert within(20, lambda: not any(runs(int(file.read_text())) for file in files))


def runs(pid: int) -> bool:
    """Whether there is such a process, other than one that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


RAISES = """
import sys, time
import torch, torch.distributed as dist
from simsiam.distributed.runtime import running
from simsiam.errors import UserError, ends_with_a_sentence

@ends_with_a_sentence
def main():
    with running("cpu") as runtime:
        runtime.barrier()
        if runtime.rank == 0:
            dist.all_reduce(torch.ones(4), async_op=True)  # the other never comes to it
            raise UserError("a mistake")
        time.sleep(600)

main()
"""


def test_a_rank_that_raises_ends_with_its_code_whatever_its_group_waits_for(tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    served = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "raises.py")],
            cwd=ROOT,
            env={**ENVIRONMENT, **served, "RANK": str(rank)},
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        _, told = ranks[0].communicate(timeout=120)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert ranks[0].returncode == 2, told
    assert "error: a mistake" in told
    assert "terminate called" not in told


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
