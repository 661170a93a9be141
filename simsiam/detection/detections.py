"""What a detector found on a set: collected image by image on each rank, then brought together, each image once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

from simsiam.distributed.collectives import world_size

Rle = dict[str, Any]  # a mask as COCO writes it: {"size": [H, W], "counts": compressed string}


class ImageDetections(NamedTuple):
    """Of one image: boxes float32 (n, 4), scores float32 (n,), labels int64 (n,) from 1, and masks or none.

    Boxes are x1, y1, x2, y2 in pixels of the original image, from 0: the whole image is 0, 0, width, height.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[Rle] | None


class Detections:
    """Detections of some images of a set, by image index, always gone through in the order of the index.

    An image without detections is there too, with empty arrays: it has been looked at.
    """

    def __init__(self) -> None:
        self._images: dict[int, ImageDetections] = {}

    def add(
        self,
        image: int,
        boxes: Tensor | ArrayLike,
        scores: Tensor | ArrayLike,
        labels: Tensor | ArrayLike,
        masks: Sequence[Rle] | None = None,
    ) -> None:
        """Keeps on the CPU what was found on image `image`, an index into the set: arrays as in `ImageDetections`.

        Raises ValueError where the image has its detections already, shapes do not fit, a label is below 1, or a box or
        score is not finite: NaN has no place in an order by score.
        """
        found = ImageDetections(
            _numbers(boxes, torch.float32, 4),
            _numbers(scores, torch.float32),
            _numbers(labels, torch.int64),
            None if masks is None else list(masks),
        )
        count = len(found.scores)
        if image in self._images:
            raise ValueError(f"image {image} has been given its detections before")
        if found.boxes.shape != (count, 4) or found.labels.shape != (count,) or found.scores.shape != (count,):
            raise ValueError(f"image {image}: boxes, scores and labels of {[part.shape for part in found[:3]]}")
        if found.masks is not None and len(found.masks) != count:
            raise ValueError(f"image {image}: {len(found.masks)} masks for {count} boxes")
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ValueError(f"image {image} has a box or a score that is not finite: has the training diverged?")
        if (found.labels < 1).any():
            raise ValueError(f"image {image} has label {found.labels.min()}; labels count from 1, 0 is background")
        self._images[int(image)] = found

    def __len__(self) -> int:
        """Images looked at."""
        return len(self._images)

    def __getitem__(self, image: int) -> ImageDetections:
        return self._images[image]

    def __iter__(self) -> Iterator[tuple[int, ImageDetections]]:
        """(image index, detections), by index: so ties in score are broken alike on any number of ranks."""
        return iter(sorted(self._images.items()))

    def gather(self, everywhere: bool = True) -> "Detections | None":
        """The images of all ranks in one, on every rank, or else on rank 0 and None on the others.

        Rank r of W has looked at images r, r + W, ... : no sampler pads, so no image comes twice. Every rank must call
        it, and each raises ValueError if an image does come twice. With NCCL the objects travel by way of the current
        device, which `running` has set.
        """
        if world_size() == 1:
            return self
        # Indices first, and to all: were only rank 0 to see that an image repeats, the others would wait for it.
        indices: list[list[int]] = [[] for _ in range(world_size())]
        dist.all_gather_object(indices, list(self._images))
        twice = sorted(image for image, times in Counter(chain(*indices)).items() if times > 1)
        if twice:
            raise ValueError(f"{len(twice)} images were given detections by more than one rank, first {twice[0]}")
        parts: list[dict[int, ImageDetections]] = [{} for _ in range(world_size())]
        if everywhere:
            dist.all_gather_object(parts, self._images)
        else:
            dist.gather_object(self._images, parts if dist.get_rank() == 0 else None)
            if dist.get_rank() > 0:
                return None
        together = Detections()
        for part in parts:
            together._images.update(part)
        return together


def _numbers(given: Tensor | ArrayLike, dtype: torch.dtype, columns: int = 0) -> np.ndarray:
    """A copy on the CPU; something empty has no shape of its own and takes (0,), or (0, columns)."""
    numbers = torch.as_tensor(given).detach().to("cpu", dtype, copy=True)
    if numbers.numel() == 0:
        numbers = numbers.reshape((0, columns) if columns else (0,))
    return numbers.numpy()
