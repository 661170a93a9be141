"""What any rank wants, known to all ranks at the same step."""

from enum import IntEnum

import torch
import torch.distributed as dist

from simsiam.distributed.runtime import Runtime


class Wish(IntEnum):
    """What a rank may ask of all."""

    STOP = 0
    """Save and end: a signal came."""
    TIME = 1
    """Save and end: the time limit is near."""
    SAVE = 2
    """Save and go on: the last save is long ago."""
    SETTLE = 3
    """Ask what became of the save that was begun last: it has ended."""


class Agreement:
    """Spreads wishes over the ranks, a step late, so that no step waits for the slowest rank or for the device.

    One small collective a step, on the CPU, in a group of its own.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._group = dist.new_group(backend="gloo") if runtime.world_size > 1 else None
        self._under_way: tuple[dist.Work, torch.Tensor] | None = None

    def exchange(self, wishes: set[Wish]) -> set[Wish]:
        """Tells the others this rank's wishes; returns what any rank told in the call before. Every rank must call it.

        One rank alone gets its own at once.
        """
        if self._group is None:
            return wishes
        heard = self._heard()
        mine = torch.tensor([int(wish in wishes) for wish in Wish], dtype=torch.int32)
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._under_way = work, mine
        return heard

    def close(self) -> None:
        """Waits for what is under way. Every rank must call it."""
        self._heard()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _heard(self) -> set[Wish]:
        if self._under_way is None:
            return set()
        (work, told), self._under_way = self._under_way, None
        work.wait()
        return {wish for wish in Wish if told[wish]}
