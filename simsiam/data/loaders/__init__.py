"""What a loader is, and which one a run takes.

A loader turns the plan's sample ids into uint8 crops and does nothing else: no colour, no randomness of its own, no
method. Loaders differ in how fast they get there, never in what comes out.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from simsiam.data.image_set import ImageSet
from simsiam.data.plan import Plan
from simsiam.data.resident import MixedSizes, ResidentImages, fits_in_memory, make_resident
from simsiam.errors import UserError
from simsiam.settings.tree import Run


class Crops(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        images: uint8 (V, N, S, S, 3), crop v of image n; any strides.
        samples: int64 (N,), the plan's sample ids, which the views are drawn from.
        labels: int64 (N,), -1 where unlabelled.
        epoch: from 0.
        replaced: (sample, reason) of images that could not be read; the next good sample's image stands in.
    """

    images: Tensor
    samples: np.ndarray
    labels: Tensor
    epoch: int
    replaced: tuple[tuple[int, str], ...] = ()


class Loader(Protocol):
    """Crops of any range of steps."""

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """For each step from `start` to before `stop`, this rank's micro-batches."""
        ...


def choose_images(images: ImageSet, settings: Run, show_progress: bool) -> tuple[ImageSet, str]:
    """The set as the run's loader wants it (decoded into memory, or as it is), and one phrase that says why.

    Raises UserError where `--loader resident` is asked for and the images do not fit.
    """
    if settings.loader == "torchvision":
        return images, "torchvision, as asked"
    fits, why = fits_in_memory(images)
    if fits:
        try:
            return make_resident(images, settings.workers, show_progress), f"resident: {why}"
        except MixedSizes as error:
            why = str(error)
    if settings.loader == "resident":
        raise UserError(f"--loader resident cannot hold this set: {why}; take --loader torchvision")
    return images, f"torchvision: {why}"


def make_loader(images: ImageSet, plan: Plan, settings: Run, num_views: int, device: object) -> Loader:
    """The loader for a set as `choose_images` left it."""
    if isinstance(images, ResidentImages):
        from simsiam.data.loaders.resident import ResidentLoader

        return ResidentLoader(images, plan, settings, num_views, device)
    from simsiam.data.loaders.torchvision import TorchvisionLoader

    return TorchvisionLoader(images, plan, settings, num_views, device)
