"""Which samples, in which order, on which rank, at which step: a pure function of (seed, epoch, step)."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from simsiam.data.counter import bits, permutation, uniform
from simsiam.errors import UserError
from simsiam.settings.tree import Run

if TYPE_CHECKING:
    from simsiam.data.image_set import ImageSet

# These name the streams of hashes that order an epoch, its shards, and the samples of a buffer.
_ORDER, _SHARD_ORDER, _BUFFER = 0x0DE2, 0x54A2, 0xB0FE


@dataclass(frozen=True)
class Plan:
    """The sample ids of every step.

    A step's global batch does not depend on the number of ranks: rank r of W takes the r-th of its W equal parts,
    so one rank or eight, one micro-batch or four, see the same images in a step. The tail of an epoch's order that
    fills no batch is dropped, another one each epoch.

    Attributes:
        shards: the shard that each sample lies in, integers (num_images,); the order is then that of `shard_order`, for
            storage that is fast only where it is read in sequence. It does not count in a comparison of two plans.
        buffer: samples over which that order mixes.
    """

    num_images: int
    global_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shards: np.ndarray | None = field(default=None, repr=False, compare=False)
    buffer: int = 0
    _order: object = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The order of an epoch takes a tenth of a second for ImageNet: kept for the epoch at hand and the next.
        def order(epoch: int) -> np.ndarray:
            if self.shards is None:
                return permutation(self.num_images, self.seed, _ORDER, epoch)
            return shard_order(self.shards, self.buffer, self.seed, epoch)

        object.__setattr__(self, "_order", lru_cache(maxsize=2)(order))

    def __reduce__(self) -> tuple:
        told = self.num_images, self.global_batch, self.seed, self.rank, self.world_size, self.shards, self.buffer
        return Plan, told

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


def micro_batch(plan: Plan, task: int, accumulate: int) -> np.ndarray:
    """Sample ids of this rank's micro-batch `task % accumulate` of step `task // accumulate`, int64 (n,)."""
    step, micro = divmod(task, accumulate)
    return np.split(plan.rank_batch(step), accumulate)[micro]


def make_plan(images: "ImageSet", global_batch: int, settings: Run, rank: int, world_size: int) -> Plan:
    """The plan of a run, in the order that `--shuffle` asks for.

    Raises UserError where it asks for the order of shards and the set is read from none.
    """
    if settings.shuffle == "full":
        return Plan(len(images), global_batch, settings.seed, rank, world_size)
    shards = getattr(getattr(images, "index", None), "shards", None)
    if shards is None:
        raise UserError(
            "--shuffle shards needs a set that is read from shards: pack a folder with `simsiam shards`, and leave "
            "--shuffle full where a small set is held in memory"
        )
    if settings.shuffle_buffer < 1:
        raise UserError(f"--shuffle-buffer {settings.shuffle_buffer} holds no sample; take 10000, or 1 to mix nothing")
    return Plan(len(images), global_batch, settings.seed, rank, world_size, shards, settings.shuffle_buffer)


def shard_order(shards: np.ndarray, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch that goes through shards one after another.

    The shards come in random order and their samples in that of their ids; then each sample is put back by a random
    part of `buffer` samples. So at any time there is a window of `buffer` samples in the order of reading: all before
    it have been seen and none behind it.

    Args:
        shards: the shard of each sample, integers (N,).

    Returns:
        Sample ids, int64 (N,).
    """
    in_sequence = np.argsort(bits(seed, _SHARD_ORDER, epoch, shards), kind="stable")
    put_back = uniform(seed, _BUFFER, epoch, in_sequence) * buffer
    return in_sequence[np.argsort(np.arange(len(shards)) + put_back, kind="stable")]
