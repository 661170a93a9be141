"""What every source of images offers to the loaders, whatever its files look like."""

from typing import Protocol

import numpy as np
import torch


class ImageSet(Protocol):
    """A fixed, ordered collection of images; a sample id is an index into it.

    Attributes:
        labels: int64 (N,), class numbers into `classes`, -1 for an unlabelled image.
        classes: class names in the order of their numbers; empty where nothing is labelled.
    """

    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, sample: int) -> str:
        """What to call a sample in a message: its path, or `cifar10/train/123`."""
        ...

    def read(self, sample: int) -> torch.Tensor:
        """The whole image, uint8 (3, H, W) RGB. Raises `BadImage` where it cannot be read."""
        ...


class BadImage(Exception):
    """An image that cannot be used, with the reason; loaders count it and put another in its place."""
