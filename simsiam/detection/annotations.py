"""Annotated images for detection: what a model trains on and an evaluator compares with, wherever it was read from.

Boxes, labels and outlines lie in flat arrays, so that forked workers share them: a list of Python objects an image
would be copied into each as its reference counts change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from simsiam.data.decode import decode, image_size
from simsiam.data.image_set import BadImage
from simsiam.data.index import Strings
from simsiam.data.storage import patiently, reason
from simsiam.detection.segments import Segments

NO_SIZE = "without a size in the annotation (taken from the image)"
"""What a reader notes of an image whose size it had to look up."""


class Objects(NamedTuple):
    """The objects of all images, one image after the other.

    Attributes:
        boxes: float32 (A, 4), x1, y1, x2, y2 in pixels, as published: one may reach out of its image, or have no area.
        labels: int64 (A,), 1 to the number of classes; 0 is the background's.
        areas: float32 (A,), square pixels: COCO's `area`, of the outline and not of the box; the box's in VOC.
        is_crowd: bool (A,), COCO's `iscrowd`: a group in one box. Evaluators ignore it, training leaves it out.
        is_difficult: bool (A,), VOC's `difficult`. Evaluators ignore it, training takes it.
        segments: outlines; None where the set has none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    segments: Segments | None = None


class DetectionSet:
    """A fixed, ordered collection of images with boxes.

    Args:
        root: the folder that `paths` begin at.
        classes: names in the order of labels; label 1 is the first.
        paths: of N images, with `/` between folders.
        ids: what evaluators call each image: strings (VOC: the file's stem) or int64 (N,) (COCO).
        sizes: int32 (N, 2), height and width in pixels as the annotations say.
        firsts: int64 (N + 1,), where the objects of each image begin in `objects`, and where the last one's end.
        objects: of all images.
        category_ids: the number of each class in a COCO file, label 1 first: what goes into results. None elsewhere.
        noted: what reading the annotations has found: finding -> names.
        rows: int64 (n,), which of the images belong to the set; all by default.
    """

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        paths: Strings,
        ids: Strings | np.ndarray,
        sizes: np.ndarray,
        firsts: np.ndarray,
        objects: Objects,
        *,
        category_ids: Sequence[int] | None = None,
        noted: Mapping[str, Sequence[str]] | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.root, self.classes, self.objects = root, tuple(classes), objects
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.noted = dict(noted or {})
        self._paths, self._ids, self._sizes, self._firsts = paths, ids, sizes, firsts
        self._rows = np.arange(len(paths)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_masks(self) -> bool:
        """Whether the set has outlines at all."""
        return self.objects.segments is not None

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image in pixels, int32 (N, 2)."""
        return self._sizes[self._rows]

    @property
    def counts(self) -> np.ndarray:
        """How many objects every image has, int64 (N,)."""
        return np.diff(self._firsts)[self._rows]

    def name(self, image: int) -> str:
        """The path of an image from the root."""
        return self._paths[self._rows[image]]

    def image_id(self, image: int) -> str | int:
        """What evaluators call an image: its file's stem in VOC, an integer in COCO."""
        identity = self._ids[self._rows[image]]
        return identity if isinstance(identity, str) else int(identity)

    def size(self, image: int) -> tuple[int, int]:
        """(height, width) in pixels, known without decoding."""
        height, width = self._sizes[self._rows[image]].tolist()
        return height, width

    def read(self, image: int) -> torch.Tensor:
        """The image, uint8 (3, H, W) RGB. Raises `BadImage` where it cannot be read or decoded."""
        try:
            data = patiently((self.root / self.name(image)).read_bytes)
        except OSError as error:
            raise BadImage(reason(error)) from error
        return decode(data)

    def objects_of(self, image: int) -> np.ndarray:
        """The rows of `objects` that an image's are, int64 (n,)."""
        row = self._rows[image]
        return np.arange(self._firsts[row], self._firsts[row + 1])

    def target(self, image: int) -> dict[str, torch.Tensor]:
        """Every object of an image as published, for evaluation and pictures.

        boxes float32 (n, 4), x1, y1, x2, y2 in pixels; labels int64 (n,), from 1; area float32 (n,); iscrowd and
        difficult bool (n,).
        """
        return self._target(self.objects_of(image))

    def training_target(self, image: int, *, masks: bool = False) -> dict[str, torch.Tensor]:
        """The objects to train on, as in `target`: no crowds, boxes clipped to the image, none without area.

        Difficult ones are in, as in Detectron2: they do no harm, and it trains on them too.

        Args:
            masks: add masks uint8 (n, H, W), and leave out objects that have no outline.
        """
        height, width = self.size(image)
        rows = self.objects_of(image)
        boxes = clipped(self.objects.boxes[rows], height, width)
        kept = has_area(boxes) & ~self.objects.is_crowd[rows]
        if masks:
            kept &= self._outlined(rows)
        target = self._target(rows[kept])
        target["boxes"] = torch.from_numpy(boxes[kept])
        if masks:
            target["masks"] = self._masks(rows[kept], height, width)
        return target

    def masks(self, image: int) -> torch.Tensor:
        """The masks of the objects in `target`, uint8 (n, H, W) of 0 and 1; all 0 for one without an outline."""
        return self._masks(self.objects_of(image), *self.size(image))

    def take(self, images: np.ndarray) -> "DetectionSet":
        """The set of some images, int64 (n,), in their order; nothing is copied."""
        return DetectionSet(
            self.root,
            self.classes,
            self._paths,
            self._ids,
            self._sizes,
            self._firsts,
            self.objects,
            category_ids=self.category_ids,
            noted=self.noted,
            rows=self._rows[images],
        )

    def annotated(self) -> "DetectionSet":
        """The images with an object that is no crowd: Detectron2's FILTER_EMPTY_ANNOTATIONS."""
        singles = np.concatenate([[0], np.cumsum(~self.objects.is_crowd)])
        has_any = singles[self._firsts[1:]] > singles[self._firsts[:-1]]
        return self.take(np.flatnonzero(has_any[self._rows]))

    def _target(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        objects = self.objects  # indexing by rows copies, so nobody can write into what all workers share
        return {
            "boxes": torch.from_numpy(objects.boxes[rows]),
            "labels": torch.from_numpy(objects.labels[rows]),
            "area": torch.from_numpy(objects.areas[rows]),
            "iscrowd": torch.from_numpy(objects.is_crowd[rows]),
            "difficult": torch.from_numpy(objects.is_difficult[rows]),
        }

    def _outlined(self, rows: np.ndarray) -> np.ndarray:
        segments = self.objects.segments
        return np.zeros(len(rows), bool) if segments is None else segments.present()[rows]

    def _masks(self, rows: np.ndarray, height: int, width: int) -> torch.Tensor:
        segments = self.objects.segments
        if segments is None:
            return torch.zeros(len(rows), height, width, dtype=torch.uint8)
        return torch.from_numpy(segments.masks(rows, height, width))


def clipped(boxes: np.ndarray, height: int | np.ndarray, width: int | np.ndarray) -> np.ndarray:
    """Boxes, float32 (n, 4), cut to the image: a copy. Height and width are numbers, or of each box (n,)."""
    cut = np.maximum(boxes, 0)
    cut[:, 0::2] = np.minimum(cut[:, 0::2], np.reshape(width, (-1, 1)))
    cut[:, 1::2] = np.minimum(cut[:, 1::2], np.reshape(height, (-1, 1)))
    return cut


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which boxes, (n, 4), have a width and a height above 0, bool (n,); one that is no number has none."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def stored_size(file: Path) -> tuple[int, int]:
    """(height, width) that an image file announces; (0, 0) where there is none."""
    try:
        return image_size(file.read_bytes()) or (0, 0)
    except OSError:
        return 0, 0
