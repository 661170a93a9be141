"""Which loader a run takes, and why."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from simsiam.data.crops import Loader
from simsiam.data.decode import jpeg_header
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage, ImageSet
from simsiam.data.plan import Plan
from simsiam.data.resident import MixedSizes, ResidentImages, fits_in_memory, make_resident
from simsiam.errors import UserError
from simsiam.settings.tree import Run, Views

if TYPE_CHECKING:
    from simsiam.data.labelled import CentreBatches, Centred


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
    lack = _auto_lacks(images, settings)
    return images, f"torchvision: {lack}; {why}" if lack else f"dali: JPEG is decoded on the GPU; {why}"


def takes_dali(images: ImageSet, settings: Run) -> bool:
    """Whether a set, as `choose_images` left it, is loaded by DALI."""
    if settings.loader == "auto":
        return not isinstance(images, ResidentImages) and not _auto_lacks(images, settings)
    return settings.loader == "dali" and not _dali_lacks(images)


def _auto_lacks(images: ImageSet, settings: Run) -> str:
    """Why `auto` does not take DALI for images that are decoded as they are needed; empty where it does."""
    if settings.device == "cpu" or not torch.cuda.is_available():
        return "there is no GPU to decode on"
    return _dali_lacks(images) or ("" if _is_jpeg(images) else "the images are not JPEG")


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
    """The loader for a set as `choose_images` left it; `num_views` of full size, small ones as the settings say."""
    if isinstance(images, ResidentImages):
        from simsiam.data.loaders.resident import ResidentLoader

        return ResidentLoader(images, plan, settings, num_views, device)
    if takes_dali(images, settings):
        from simsiam.data.loaders.dali import DaliLoader

        return DaliLoader(images, plan, settings, num_views, device)
    from simsiam.data.loaders.torchvision import TorchvisionLoader

    return TorchvisionLoader(images, plan, settings, num_views, device)


def choose_centres(settings: Run, device: torch.device) -> "CentreBatches":
    """How a run reads what it is tested on: out of memory, by DALI where it would train by it, else by workers."""
    from simsiam.data.labelled import centre_batches

    def centres(images: ImageSet, samples: np.ndarray, views: Views, batch: int) -> "Iterator[Centred]":
        if len(samples) and takes_dali(images, settings):
            from simsiam.data.loaders.dali_centre import dali_centre_batches

            return dali_centre_batches(images, samples, views, batch, settings, device)
        workers = 0 if isinstance(images, ResidentImages) else settings.workers
        return centre_batches(images, samples, views, batch, workers, pin_memory=device.type == "cuda")

    return centres
