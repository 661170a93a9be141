"""A split of `--data` on every rank: rank 0 looks, downloads or draws what is missing, and tells the others."""

from simsiam.data.datasets import open_dataset
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import ImageSet
from simsiam.data.subsets import choose, evenly_spaced
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.settings.tree import Run

_DEBUG_IMAGES = 64


def open_images(settings: Run, split: str, runtime: Runtime, classes: tuple[str, ...] | None = None) -> ImageSet:
    """The images of a split: the training images cut to `--subset`, all to a few with `--debug`.

    Encoded images are listed by rank 0 alone, and the others get its index: a network file system may show each rank
    another folder. Raises UserError on every rank alike.
    """
    if not settings.data:
        raise UserError(
            "No dataset is given: set --data or DATA to a folder with train/ and val/, or try --data shapes"
        )
    opened: ImageSet | None = None

    def open_on_main() -> ImageSet | None:
        nonlocal opened
        opened = _open(settings, split, classes, settings.download)
        return opened if isinstance(opened, EncodedImages) else None  # arrays are read by each rank: they are large

    images = runtime.on_main(open_on_main) or opened or _open(settings, split, classes, download=False)
    return evenly_spaced(images, max(_DEBUG_IMAGES, 2 * settings.batch_size)) if settings.debug else images


def _open(settings: Run, split: str, classes: tuple[str, ...] | None, download: bool) -> ImageSet:
    images = open_dataset(
        settings.data,
        split,
        download=download,
        classes=classes,
        checksums=settings.checksums,
        workers=settings.workers,
    )
    return choose(images, settings.subset) if settings.subset and split != "val" else images
