"""A part of an image set."""

import numpy as np
import torch

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import ImageSet


class Subset:
    """The images `samples` (int64, any order) of a set, as an `ImageSet` with the same classes."""

    def __init__(self, images: ImageSet, samples: np.ndarray) -> None:
        self._images, self._samples = images, np.asarray(samples, np.int64)
        self.labels, self.classes = images.labels[self._samples], images.classes

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, sample: int) -> str:
        """As the whole set calls it."""
        return self._images.name(int(self._samples[sample]))

    def read(self, sample: int) -> torch.Tensor:
        """uint8 (3, H, W) RGB. Raises `BadImage`."""
        return self._images.read(int(self._samples[sample]))


def take(images: ImageSet, samples: np.ndarray) -> ImageSet:
    """The set of some images, int64 (n,), in their order, with the same classes."""
    return images.take(samples) if isinstance(images, EncodedImages) else Subset(images, samples)


def evenly_spaced(images: ImageSet, count: int) -> ImageSet:
    """At most `count` images spread evenly over the order of the set, and so over its classes."""
    return take(images, np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)))


def choose(images: ImageSet, subset: str) -> ImageSet:
    """The part of a training set that `--subset` names."""
    raise NotImplementedError(subset)
