"""What methods share that tell the two views of one image from views of two images."""

import numpy as np
import torch
from torch import Tensor

from simsiam.data.counter import bits, permutation
from simsiam.data.to_device import to_device
from simsiam.distributed.collectives import gather_with_gradient, rank, world_size
from simsiam.methods.base import Method
from simsiam.training.module import Moment

_ORDER, _SEED = 0xFA4E, 0xD409  # these name the streams of hashes that pair images at random and seed dropout


class Pairs(Method):
    """Base of methods whose fake pairs come from the images of all ranks.

    What is random about a micro-batch is a function of the step and the micro-batch's number alone: the same on every
    rank, on any number of ranks, and after a resume. A forward pass begins with `_next_place`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._step, self._micro = 0, -1

    def before_step(self, at: Moment) -> None:
        self._step, self._micro = at.step, -1

    def _next_place(self) -> None:
        self._micro += 1

    def _seed(self, number: int = 0) -> int:
        """A seed for the `number`-th use of the discriminator in this micro-batch."""
        return int(bits(_SEED, self._step, self._micro, number)) >> 1

    def _orders(self, rank_images: int, device: torch.device) -> Tensor:
        """A random order of the images of all ranks for each half of a pair, int64 (2, W * N)."""
        images = rank_images * world_size()
        orders = np.stack([permutation(images, _ORDER, self._step, self._micro, half) for half in range(2)])
        return to_device(orders, device)

    def _shuffled(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's N fake pairs: both halves (N, ...), independently permuted over the images of all ranks."""
        n = len(first)
        mine = self._orders(n, first.device)[:, rank() * n : (rank() + 1) * n]
        halves = zip((first, second), mine, strict=True)
        first, second = (gather_with_gradient(half)[order] for half, order in halves)
        return first, second

    def _real_and_fake(self, first: Tensor, second: Tensor) -> Tensor:
        """Both kinds of pairs (2, N, 2 D) of halves (N, D)."""
        return torch.stack([torch.cat(pair, dim=1) for pair in ((first, second), self._shuffled(first, second))])
