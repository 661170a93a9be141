"""Notices the first step whose loss or gradient is not finite, without waiting for the device at every step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from simsiam.distributed.collectives import add_up, gather_equal, meets_in_memory, world_size
from simsiam.distributed.waiting import Instant, instant, waiting

_NEVER = 1 << 62


class Bad(NamedTuple):
    """The first step that was not finite, and the ranks where that began: by their loss, else by their gradients.

    A loss comes first, because synchronised batch-norm carries its gradients to every rank.
    """

    step: int
    ranks: list[int]


class FiniteGuard:
    """Collects each step's flags on the device; reading them is the only wait."""

    def __init__(self, device: torch.device) -> None:
        # The first bad step as this rank sees it: of all ranks, by its own loss, by its own gradients.
        self._first = torch.full((3,), _NEVER, device=device)

    def watch(self, step: int, finite: Tensor, own_loss: Tensor, own_gradients: Tensor) -> None:
        """Notes the flags (bool scalars, whether finite) of step number `step`."""
        flags = torch.stack([finite, own_loss, own_gradients])
        self._first = torch.where(flags, self._first, self._first.clamp_max(step))

    def first_bad(self) -> Bad | None:
        """The first step that was not finite on any rank; None while there is none. Every rank must call it."""
        of_all, losses, gradients = gather_equal(self._first).view(-1, 3).T.tolist()
        first = min(of_all + losses)
        if first == _NEVER:
            return None
        by_loss, by_gradient = ([r for r, own in enumerate(kind) if own == first] for kind in (losses, gradients))
        return Bad(first, by_loss or by_gradient)


class OwnGradients:
    """A communication hook of DDP: averages gradients as without it, and looks at this rank's own before.

    Afterwards every rank has the same, and nobody could tell where the first NaN came from. It also counts how long the
    backward pass, which has nothing more to compute, waits for the averages. Where `reduces_bf16`, gradients cross
    the network as bfloat16, and are added up in it.
    """

    def __init__(self, model: DistributedDataParallel, device: torch.device, reduces_bf16: bool = False) -> None:
        self._reduces_bf16 = reduces_bf16
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        """Whether all gradients were finite since this was last reset."""
        model.register_comm_hook(None, self._average)

    def reset(self) -> None:
        """Forgets what was seen: a step begins."""
        self.finite.fill_(True)

    def _average(self, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        # A NaN is both. Asking each number for itself writes several answers a number: on a CPU 13 times as long.
        least, greatest = bucket.buffer().aminmax()
        self.finite.logical_and_(least.isfinite() & greatest.isfinite())
        if self._reduces_bf16:
            average = bf16_compress_hook(group, bucket)
        elif meets_in_memory(bucket.buffer().device):
            average = torch.futures.Future()
            average.set_result(add_up(bucket.buffer().div_(world_size())))
        else:
            average = allreduce_hook(group, bucket)
        if bucket.is_last():
            _at_the_end_of_backward(partial(self._ask_again, instant(bucket.buffer().device)))
        return average

    def _ask_again(self, begin: Instant) -> None:
        # What is called at the end is called in the order of asking, and DDP, which waits there, asked after this.
        _at_the_end_of_backward(partial(self._waited, begin))

    def _waited(self, begin: Instant) -> None:
        waiting.add(begin, instant(self.finite.device))


def _at_the_end_of_backward(function: Callable[[], None]) -> None:
    Variable._execution_engine.queue_callback(function)
