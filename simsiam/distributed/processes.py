"""Which process a number means: /proc tells one that lives from one that had the number before."""

import os
from pathlib import Path


def process_status(pid: int | str) -> tuple[str, int] | None:
    """State, as a letter, and start, in ticks since boot, of a process of this host; None where none is to be seen.

    `pid` may be "self".
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
    except (OSError, IndexError):
        return None


def pid_namespace() -> str:
    """Which numbering of processes this one has, for two containers of a host count each from 1; "" off Linux."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
