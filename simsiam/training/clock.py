"""Where the time goes: waiting for data and for other ranks, stepping, pairs per second."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from simsiam.distributed.waiting import waiting
from simsiam.errors import UserError

T = TypeVar("T")


class Clock:
    """Measures an interval of steps between two readings.

    Args:
        pairs_per_step: images of the global batch.
    """

    def __init__(self, pairs_per_step: int) -> None:
        self.pairs_per_step = pairs_per_step
        self.restart()

    def restart(self) -> None:
        """Begins a new interval; call it too after anything that is no training (evaluation, a save)."""
        self._begin = time.perf_counter()
        self._data, self._steps, self._waited = 0.0, 0, waiting.seconds()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Hands on the loader's batches, one a step, and counts the seconds spent waiting for them."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data += time.perf_counter() - before
            self._steps += 1
            yield batch

    def read(self) -> dict[str, float]:
        """Means over the interval: seconds a step, of them waiting for data and in collectives, and pairs/s.

        Then begins a new interval.
        """
        steps, elapsed = max(self._steps, 1), time.perf_counter() - self._begin
        reading = {
            "step_seconds": elapsed / steps,
            "data_seconds": self._data / steps,
            "collective_seconds": (waiting.seconds() - self._waited) / steps,
            "pairs_per_second": self.pairs_per_step * self._steps / elapsed,
        }
        self.restart()
        return reading


def due(step: int, every: float) -> bool:
    """Whether `step` (from 1) is the first at or after a multiple of `every` steps, whole or not; 0 is never."""
    return every > 0 and int(step / every) > int((step - 1) / every)


def wall_seconds(written: str) -> float:
    """Seconds of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0 of an empty text.

    Raises UserError for anything else.
    """
    if not written:
        return 0.0
    days, dash, rest = written.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (*parts, *([days] if dash else []))) or len(parts) > 3:
        raise UserError(f"--max-wall-time {written!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
