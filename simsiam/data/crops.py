"""What a loader gives.

A loader turns the plan's sample ids into uint8 crops and does nothing else: no colour, no randomness of its own, no
method. Loaders differ in how fast they get there, never in what comes out.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Crops(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        images: uint8 (V, N, S, S, 3), crop v of image n, of the full-size views; any strides.
        samples: int64 (N,), the plan's sample ids, which the views are drawn from.
        labels: int64 (N,), -1 where unlabelled.
        epoch: from 0.
        replaced: (sample, reason) of images that could not be read; the next good sample's image stands in.
        small: uint8 (W, N, s, s, 3), as `images`, of the small views; None where the recipe has none.
    """

    images: Tensor
    samples: np.ndarray
    labels: Tensor
    epoch: int
    replaced: tuple[tuple[int, str], ...] = ()
    small: Tensor | None = None


class Loader(Protocol):
    """Crops of any range of steps."""

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """For each step from `start` to before `stop`, this rank's micro-batches."""
        ...
