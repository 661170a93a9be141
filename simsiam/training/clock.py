"""Where the time goes: waiting for data and for other ranks, stepping, pairs per second."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from simsiam.distributed.waiting import waiting

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
