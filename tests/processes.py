"""Processes as a test sees them from outside."""

import contextlib
import multiprocessing.process
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from simsiam.distributed.processes import process_status


def wait_until(there: Callable[[], object], seconds: float, meanwhile: Sequence[subprocess.Popen] = ()) -> None:
    """Until something holds; fails where it does not in time, or where all of these processes end before."""
    deadline = time.monotonic() + seconds
    while not there():
        codes = [process.poll() for process in meanwhile]
        assert not codes or None in codes, f"all ended before, with {codes}"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def runs(pid: int) -> bool:
    """Whether there is such a process, other than one that nobody has asked for its exit code yet."""
    status = process_status(pid)
    return status is not None and status[0] not in "ZX"


def children(process: subprocess.Popen | multiprocessing.process.BaseProcess) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since it was listed
            found += map(int, (task / "children").read_text().split())
    return found
