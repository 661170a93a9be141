"""Which samples, in which order, on which rank, at which step: a pure function of (seed, epoch, step)."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from simsiam.data.counter import permutation

_ORDER = 0x0DE2  # names the stream of hashes that orders an epoch


@dataclass(frozen=True)
class Plan:
    """The sample ids of every step.

    A step's global batch does not depend on the number of ranks: rank r of W takes the r-th of its W equal parts,
    so one rank or eight, one micro-batch or four, see the same images in a step. The tail of an epoch's order that
    fills no batch is dropped, another one each epoch.
    """

    num_images: int
    global_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    _order: object = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The order of an epoch takes a tenth of a second for ImageNet: kept for the epoch at hand and the next.
        order = lru_cache(maxsize=2)(lambda epoch: permutation(self.num_images, self.seed, _ORDER, epoch))
        object.__setattr__(self, "_order", order)

    def __reduce__(self) -> tuple:
        return Plan, (self.num_images, self.global_batch, self.seed, self.rank, self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.global_batch

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that step `step` belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Sample ids of the global batch of `step`, int64 (global_batch,)."""
        start = step % self.steps_per_epoch * self.global_batch
        return self._order(self.epoch(step))[start : start + self.global_batch].copy()

    def rank_batch(self, step: int) -> np.ndarray:
        """Sample ids of this rank's part of `step`, int64 (global_batch / world_size,)."""
        size = self.global_batch // self.world_size
        return self.batch(step)[self.rank * size : (self.rank + 1) * size]
