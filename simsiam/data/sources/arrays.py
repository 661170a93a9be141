"""Images that are already in memory as one array."""

from collections.abc import Sequence

import numpy as np
import torch

from simsiam.data.image_set import BadImage


class ArrayImages:
    """Decoded images of one size, as an `ImageSet`; a loader may move `images` to a device as they are.

    Args:
        images: uint8 (N, H, W, 3) RGB.
        labels: class numbers (N,), -1 for an unlabelled image.
        classes: class names in the order of their numbers.
        prefix: what the set is called in messages: sample 12 of `digits/train` is `digits/train/12`.

    Attributes:
        replaced: sample -> reason, of images that another one stands in for because they could not be read.

    Raises:
        ValueError: arrays of another shape or type.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], prefix: str) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images need as many labels, not {labels.shape}")
        self.images = np.ascontiguousarray(images)
        self.labels = labels.astype(np.int64)
        self.classes = tuple(classes)
        self.prefix = prefix
        self.replaced: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, sample: int) -> str:
        """The prefix and the number of a sample, such as `cifar10/train/123`."""
        return f"{self.prefix}/{sample}"

    def read(self, sample: int) -> torch.Tensor:
        """The whole image, uint8 (3, H, W) RGB: a copy, so writing into it changes nothing here.

        Raises `BadImage` for a sample that another one stands in for.
        """
        if sample in self.replaced:
            raise BadImage(self.replaced[sample])
        return torch.from_numpy(self.images[sample].copy()).permute(2, 0, 1)
