"""Small sets decoded once into memory."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from tqdm import tqdm

from simsiam.data.image_set import BadImage, ImageSet
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.stand_ins import next_good

_LIMIT_BYTES = 4 << 30
_TASK = 64


class MixedSizes(Exception):
    """Images of different sizes, which no one array holds."""


class ResidentImages(ArrayImages):
    """Decoded images of equal size. Where one could not be read, the next good one's image and label stand in.

    Evaluation leaves these out.
    """

    def __init__(self, images: np.ndarray, source: ImageSet, labels: np.ndarray, replaced: dict[int, str]) -> None:
        super().__init__(images, labels, source.classes, prefix="")
        self.name = source.name
        self.replaced = replaced


def fits_in_memory(images: ImageSet) -> tuple[bool, str]:
    """Whether a set can be resident, and why; a folder is judged by its first readable image."""
    if isinstance(images, ArrayImages):
        return True, f"{images.images.nbytes / 2**20:.0f} MiB already decoded"
    for sample in range(min(len(images), 100)):
        try:
            first = images.read(sample)
        except BadImage:
            continue
        if max(first.shape) > 128:
            return False, f"images of {first.shape[1]}x{first.shape[2]} pixels are decoded as they are needed"
        size = first.numel() * len(images)
        if size > _LIMIT_BYTES:
            return False, f"{size / 2**30:.0f} GiB decoded are more than {_LIMIT_BYTES >> 30} GiB"
        return True, f"{size / 2**20:.0f} MiB decoded"
    return False, "none of the first images can be read"


def make_resident(images: ImageSet, workers: int, show_progress: bool) -> ResidentImages:
    """Decodes a whole set. Raises MixedSizes where the images are not all of one size."""
    if isinstance(images, ResidentImages):
        return images
    if isinstance(images, ArrayImages):
        return ResidentImages(images.images, images, images.labels, {})

    shape = _first_shape(images)
    decoded, failed = np.empty((len(images), *shape), np.uint8), {}

    def decode(samples: range) -> dict[int, str]:
        unreadable = {}
        for sample in samples:
            try:
                pixels = images.read(sample).permute(1, 2, 0).numpy()
            except BadImage as error:
                unreadable[sample] = str(error)
                continue
            if pixels.shape != shape:
                odd, usual = (f"{size[0]}x{size[1]}" for size in (pixels.shape, shape))
                raise MixedSizes(f"the images differ in size: {images.name(sample)} is {odd} in a set of {usual}")
            decoded[sample] = pixels
        return unreadable

    # So many at a time: one by one, small images would wait for threads longer than they take to decode.
    tasks = [range(start, min(start + _TASK, len(images))) for start in range(0, len(images), _TASK)]
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(images), desc="decoding", unit=" images", disable=None if show_progress else True) as bar,
    ):
        for samples, unreadable in zip(tasks, pool.map(decode, tasks)):
            failed |= unreadable
            bar.update(len(samples))
    labels = images.labels.copy()
    for sample in failed:
        stand_in = next_good(sample, len(images), failed)
        decoded[sample], labels[sample] = decoded[stand_in], labels[stand_in]
    return ResidentImages(decoded, images, labels, failed)


def _first_shape(images: ImageSet) -> tuple[int, ...]:
    for sample in range(len(images)):
        with suppress(BadImage):
            _, height, width = images.read(sample).shape
            return height, width, 3
    raise BadImage("no image of the set can be read")
