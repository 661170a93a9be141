"""How long this rank is held up in collectives: until the last rank comes, and while the data crosses."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MANY = 1024
Instant = float | torch.cuda.Event


class Waiting:
    """Adds up the seconds between pairs of instants, by the clock of the device that is held up.

    Collectives on the CPU hold up the thread that calls them. Those on a GPU hold up its stream, long after the call:
    there an instant is an event in the stream. Nothing waits for it; a pair counts once the GPU has come past it.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def counted(self, device: torch.device) -> Iterator[None]:
        """Around a collective whose result on `device` is needed at once."""
        begin = instant(device)
        yield
        self.add(begin, instant(device))

    def add(self, begin: Instant, end: Instant) -> None:
        """Counts what lies between two instants of one device."""
        if isinstance(begin, float):
            self._seconds += end - begin
            return
        self._under_way.append((begin, end))
        if len(self._under_way) > _MANY:
            self._take_what_is_over()

    def seconds(self) -> float:
        """All so far, of this process."""
        self._take_what_is_over()
        return self._seconds

    def _take_what_is_over(self) -> None:
        while self._under_way and self._under_way[0][1].query():
            begin, end = self._under_way.popleft()
            self._seconds += begin.elapsed_time(end) / 1000


def instant(device: torch.device) -> Instant:
    """Now, on the CPU; on a GPU, when its current stream has come to here."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


waiting = Waiting()
"""That of this process, as its process group is one."""
