"""What a loader is, and which one a run takes.

A loader turns the plan's sample ids into uint8 crops and does nothing else: no colour, no randomness of its own, no
method. Loaders differ in how fast they get there, never in what comes out.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from simsiam.data.decode import jpeg_header
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage, ImageSet
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
    """The set as the run's loader wants it (decoded into memory, or as it is), and one phrase: the loader, and why.

    Raises UserError where a loader is asked for that cannot load this set.
    """
    if settings.loader == "torchvision":
        return images, "torchvision, as asked"
    if settings.loader == "dali":
        lack = _dali_lacks(images)
        if lack:
            raise UserError(f"--loader dali cannot load this set: {lack}; take --loader torchvision")
        return images, "dali, as asked"
    fits, why = fits_in_memory(images)
    if fits:
        try:
            return make_resident(images, settings.workers, show_progress), f"resident: {why}"
        except MixedSizes as error:
            why = str(error)
    if settings.loader == "resident":
        raise UserError(f"--loader resident cannot hold this set: {why}; take --loader torchvision")
    return images, f"{_for_large_images(images, settings)}; {why}"


def _for_large_images(images: ImageSet, settings: Run) -> str:
    """The loader that `auto` takes for images that are decoded as they are needed, and why."""
    if settings.device == "cpu" or not torch.cuda.is_available():
        return "torchvision: there is no GPU to decode on"
    lack = _dali_lacks(images) or ("" if _is_jpeg(images) else "the images are not JPEG")
    return f"torchvision: {lack}" if lack else "dali: JPEG is decoded on the GPU"


def takes_dali(images: ImageSet, settings: Run) -> bool:
    """Whether a set, as `choose_images` left it, is loaded by DALI."""
    if settings.loader == "auto":
        return not isinstance(images, ResidentImages) and _for_large_images(images, settings).startswith("dali")
    return settings.loader == "dali" and not _dali_lacks(images)


def dali_is_installed() -> bool:
    """Whether DALI can be imported."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def _dali_lacks(images: ImageSet) -> str:
    """What keeps DALI from loading a set; empty where nothing does."""
    if not isinstance(images, EncodedImages):
        return "its images are arrays, not files"
    if not dali_is_installed():
        return "DALI is not installed (pip install 'simsiam[dali]')"
    return ""


def _is_jpeg(images: EncodedImages) -> bool:
    """Whether the first image that can be read is a JPEG; a few of another kind among them do no harm."""
    for sample in range(min(len(images), 100)):
        with suppress(BadImage):
            return jpeg_header(images.read_bytes(sample)) is not None
    return False


def make_loader(images: ImageSet, plan: Plan, settings: Run, num_views: int, device: object) -> Loader:
    """The loader for a set as `choose_images` left it."""
    if isinstance(images, ResidentImages):
        from simsiam.data.loaders.resident import ResidentLoader

        return ResidentLoader(images, plan, settings, num_views, device)
    if takes_dali(images, settings):
        from simsiam.data.loaders.dali import DaliLoader

        return DaliLoader(images, plan, settings, num_views, device)
    from simsiam.data.loaders.torchvision import TorchvisionLoader

    return TorchvisionLoader(images, plan, settings, num_views, device)
