"""A process by its number and start, for the kernel gives numbers again; and one that ends with its parent."""

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def process_status(pid: int | str) -> tuple[str, int] | None:
    """State, as a letter, and start, in ticks since boot, of a process of this host; None where none is to be seen.

    `pid` may be "self".
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
    except (OSError, IndexError):
        return None


def process_age(pid: int) -> float | None:
    """Seconds since a process of this host began; None where none is to be seen."""
    status = process_status(pid)
    return None if status is None else time.clock_gettime(time.CLOCK_BOOTTIME) - status[1] / os.sysconf("SC_CLK_TCK")


def pid_namespace() -> str:
    """Which numbering of processes this one has, for two containers of a host count each from 1; "" off Linux."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def end_with_parent() -> None:
    """Has Linux, which alone can, kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
