"""A split of `--data` on every rank: rank 0 looks first, downloads or draws what is missing, and speaks for all."""

from simsiam.data.datasets import open_dataset
from simsiam.data.image_set import ImageSet
from simsiam.data.subsets import evenly_spaced
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.settings.tree import Run

_DEBUG_IMAGES = 64


def open_images(settings: Run, split: str, runtime: Runtime, classes: tuple[str, ...] | None = None) -> ImageSet:
    """The images of a split, cut to a few with `--debug`. Raises UserError on every rank alike."""
    if not settings.data:
        raise UserError(
            "No dataset is given: set --data or DATA to a folder with train/ and val/, or try --data shapes"
        )
    if runtime.world_size > 1:
        runtime.on_main(lambda: len(open_dataset(settings.data, split, download=settings.download, classes=classes)))
    images = open_dataset(settings.data, split, download=settings.download and runtime.world_size == 1, classes=classes)
    return evenly_spaced(images, max(_DEBUG_IMAGES, 2 * settings.batch_size)) if settings.debug else images
