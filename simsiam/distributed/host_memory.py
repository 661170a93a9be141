"""Collectives of ranks on CPUs of one host, through memory that they share.

Gloo sends what crosses the ranks over sockets, from a thread of its own. Between two busy cores that thread waits for
its slice of a core, 2 to 5 ms in one meeting of three, and a step of batch-norm over all ranks has dozens of meetings.
Here a rank writes its part, counts up, and looks until the others have counted as far.
"""

import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.distributed.processes import process_status

_SLOT = 1 << 20  # bytes that a rank writes between two meetings
_MOST_RANKS = 8  # each reads the parts of all, where gloo's ring has each read two
_LINE = 64  # bytes of a line of the cache: what one rank writes is not in one that another does
_FOLDER = Path("/dev/shm")  # where files are memory
_LOOKS = 2000  # a tenth of a millisecond, before a rank offers its core to whoever wants it
_SOON, _NAP = 1e-3, 1e-4  # seconds in which the others should come, and how long to sleep between looks after that
_STILL_THERE = 0.5  # seconds between two looks at the process of a rank that does not come


class HostMemory:
    """Slots of all ranks in one file in memory, two for each.

    Who writes a slot again has met, in between, all who read what was in it. Every rank calls the same methods in the
    same order, from one thread. Raises DistNetworkError where a rank is gone.
    """

    def __init__(self, rank: int, world_size: int, memory: mmap.mmap) -> None:
        self._rank, self._world_size, self._meetings = rank, world_size, 0
        head = world_size * _LINE
        # For each rank its meetings so far, its process and when that began.
        self._lines = memoryview(memory)[:head].cast("q")
        self._slots = torch.frombuffer(memory, dtype=torch.uint8, offset=_head(world_size)).view(2, world_size, _SLOT)
        pid, born = os.getpid(), process_status("self")[1]
        at = rank * _LINE // 8
        self._lines[at + 1], self._lines[at + 2] = pid, born

    @classmethod
    def among(cls, rank: int, world_size: int, store: dist.Store) -> "HostMemory | None":
        """The memory of all ranks, which are on this host; None, on every rank, where there cannot be one."""
        if world_size > _MOST_RANKS:
            return None
        if rank == 0:
            store.set("host_memory", _make(_head(world_size) + 2 * world_size * _SLOT))
        path = store.get("host_memory").decode()
        if not path:
            return None
        with open(path, "r+b") as file:
            memory = cls(rank, world_size, mmap.mmap(file.fileno(), 0))
        store.add("host_memory/opened", 1)
        if rank == 0:
            while store.add("host_memory/opened", 0) < world_size:
                time.sleep(0.001)
            os.unlink(path)  # its memory goes with the last of its processes
            store.set("host_memory/ready", "1")
        store.wait(["host_memory/ready"], timedelta(minutes=5))
        return memory

    def gather(self, everyone: Tensor, rows: Tensor) -> None:
        """Writes contiguous rows (n, ...) of each rank to contiguous `everyone` (W * n, ...), in rank order."""
        parts = everyone.view(self._world_size, -1)
        mine = rows.view(-1)
        for start, slots in self._exchanges(mine):
            parts[:, start : start + slots.shape[1]] = slots

    def add_up(self, value: Tensor) -> None:
        """Makes a contiguous tensor the sum over ranks, added in rank order on each, in place."""
        mine = value.view(-1)
        for start, slots in self._exchanges(mine):
            total = mine[start : start + slots.shape[1]]
            if slots.itemsize < 4:  # added up in float32 and rounded once
                torch.sum(slots, 0, dtype=slots.dtype, out=total)
                continue
            torch.add(slots[0], slots[1], out=total)  # twice as fast as a sum of two rows
            for part in slots[2:]:
                total.add_(part)

    def _exchanges(self, mine: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Where each piece of flat `mine` begins, and all ranks' (W, n), good until the next one is asked for."""
        most = _SLOT // mine.element_size()
        for start in range(0, len(mine), most):
            piece = mine[start : start + most]
            slots = self._slots[self._meetings % 2].view(mine.dtype)[:, : len(piece)]
            slots[self._rank] = piece
            self._meet()
            yield start, slots

    def _meet(self) -> None:
        self._meetings += 1
        self._lines[self._rank * _LINE // 8] = self._meetings
        for rank in range(self._world_size):
            if rank != self._rank:
                self._wait_for(rank)

    def _wait_for(self, rank: int) -> None:
        lines, at, number = self._lines, rank * _LINE // 8, self._meetings
        for _ in range(_LOOKS):
            if lines[at] >= number:
                return
        began = looked = time.monotonic()
        while lines[at] < number:
            now = time.monotonic()
            if now - began < _SOON:
                os.sched_yield()
            else:
                time.sleep(_NAP)
            if now - looked > _STILL_THERE:
                looked = now
                status = process_status(lines[at + 1])
                if (status is None or status[0] in "ZX" or status[1] != lines[at + 2]) and lines[at] < number:
                    raise dist.DistNetworkError(f"the process of rank {rank} is gone")


def _head(world_size: int) -> int:
    return -(-world_size * _LINE // mmap.PAGESIZE) * mmap.PAGESIZE


def _make(size: int) -> str:
    """The path of a new file in memory; "" where there is no room, or a processor that may reorder what is written."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return ""
    with suppress(OSError):
        file, path = tempfile.mkstemp(prefix="simsiam-", dir=_FOLDER)
        try:
            os.posix_fallocate(file, 0, size)
            return path
        except OSError:
            os.unlink(path)
        finally:
            os.close(file)
    return ""
