"""Average precision on PASCAL VOC, as Detectron2 reports it (its `evaluation/pascal_voc_evaluation.py`, 02b5c4e).

A detection goes to the object of its class that it overlaps most. It is right where that overlap (IoU) is greater than
the threshold and no detection with a higher score has gone to the same object; a second one is wrong, even where it
overlaps another object enough. Objects marked `difficult` are not counted, and what goes to one is neither right nor
wrong.

The devkit's boxes count pixels from 1 and include the last, so that its widths are x2 - x1 + 1. Ours are read as
Detectron2 reads them, xmin - 1, ymin - 1, xmax, ymax: widths are x2 - x1 and the 1 is in the box already.

Without the first of these departures each class's AP was Detectron2's to 1e-13 (on made sets):
- Detectron2 writes scores with 3 decimals and boxes with 1 before it scores them, and breaks the ties so made at will.
  Here nothing is rounded, and ties keep the order of images and, within one, that of the detector. On made sets of 200
  to 5,000 images that moved AP50 by 0.12 at most, to either side; trials on VOC differ by about 0.2.
- A class without an object that counts has no AP (nan) and is left out of the mean, as COCO does. Detectron2 takes it
  as 0 in the 11-point metric; in the other its mean is nan if the class has detections. In VOC every class has objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from simsiam.detection.detections import Detections

Metric = Literal["11-point", "area"]

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""IoU that a right detection must exceed: .50, .55, ... .95."""

# Not quite tenths: the fourth is a little above 0.3, and a recall of just 3 / 10 misses it. Detectron2 has the same.
_RECALLS = np.arange(0.0, 1.1, 0.1)


@dataclass(frozen=True)
class AveragePrecision:
    """Percent, mean over the classes that have objects: at IoU .50, over all thresholds, at IoU .75.

    Attributes:
        per_class: float64 (10, C), percent, a row a threshold of `THRESHOLDS`, nan where a class has no object.
    """

    ap50: float
    ap: float
    ap75: float
    per_class: np.ndarray = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"AP50 {self.ap50:.2f}, AP {self.ap:.2f}, AP75 {self.ap75:.2f}"


def metric_of_year(year: int) -> Metric:
    """What Detectron2 takes for the sets of a year: precision at 11 recalls in 2007, else the area below the curve."""
    return "11-point" if year == 2007 else "area"


def average_precision(
    detections: Detections, ground_truth: Sequence[Mapping[str, Any]], classes: int, metric: Metric
) -> AveragePrecision:
    """VOC's AP of the detections on all images of a set; an image that has no detections counts as well.

    Args:
        detections: gathered from all ranks, of images that are indices into `ground_truth`.
        ground_truth: of each image `boxes` (m, 4), x1, y1, x2, y2 from 0 (see above), `labels` (m,) in 1...classes, and
            `difficult` bool (m,), by default none.
        classes: C, background not counted.

    Raises ValueError where an image is not in the ground truth, or a label is out of range.
    """
    if metric not in ("11-point", "area"):
        raise ValueError(f"metric {metric!r} is neither '11-point' nor 'area'")
    truth = [_truth(image, objects, classes) for image, objects in enumerate(ground_truth)]
    if not truth:
        raise ValueError("there is no image in the ground truth")
    starts = np.cumsum([0] + [len(labels) for _, labels, _ in truth])
    difficult = np.concatenate([flags for _, _, flags in truth] + [[False]])  # the last is what nothing goes to: -1
    counted = np.concatenate([labels[~flags] for _, labels, flags in truth])
    positives = np.bincount(counted, minlength=classes + 1)

    scores, labels, overlaps, targets = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int64)]
    for image, found in detections:
        if not 0 <= image < len(truth):
            raise ValueError(f"image {image} has detections, but the ground truth has {len(truth)} images")
        if (found.labels > classes).any():
            raise ValueError(f"image {image} has detections of class {found.labels.max()}, of {classes}")
        overlap, target = _best(found.boxes.astype(np.float64), found.labels, *truth[image][:2])
        scores.append(found.scores)
        labels.append(found.labels)
        overlaps.append(overlap)
        targets.append(np.where(target < 0, -1, target + starts[image]))
    score, label, overlap, target = map(np.concatenate, (scores, labels, overlaps, targets))

    order = np.lexsort((-score, label))  # stable: equal scores stay in the order of images
    edges = np.searchsorted(label[order], np.arange(1, classes + 2))
    per_class = np.full((len(THRESHOLDS), classes), np.nan)
    for c in range(classes):
        rows = order[edges[c] : edges[c + 1]]
        if positives[c + 1]:
            curves = (_right_and_wrong(overlap[rows] > t, target[rows], difficult) for t in THRESHOLDS)
            per_class[:, c] = [100 * _ap(right, wrong, positives[c + 1], metric) for right, wrong in curves]
    with_objects = positives[1:] > 0
    means = per_class[:, with_objects].mean(1) if with_objects.any() else np.full(len(THRESHOLDS), np.nan)
    ap50, ap75 = (float(means[THRESHOLDS.index(t)]) for t in (0.5, 0.75))
    return AveragePrecision(ap50, float(means.mean()), ap75, per_class)


def _truth(image: int, objects: Mapping[str, Any], classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.asarray(objects["boxes"], np.float64).reshape(-1, 4)
    labels = np.asarray(objects["labels"], np.int64).reshape(-1)
    flags = np.asarray(objects.get("difficult", np.zeros(len(labels), bool))).astype(bool).reshape(-1)
    if not len(boxes) == len(labels) == len(flags):
        raise ValueError(f"image {image}: {len(boxes)} boxes, {len(labels)} labels, {len(flags)} marks of difficulty")
    if ((labels < 1) | (labels > classes)).any():
        raise ValueError(f"image {image} has an object outside classes 1 to {classes}")
    return boxes, labels, flags


def _best(
    boxes: np.ndarray, labels: np.ndarray, of: np.ndarray, of_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The greatest overlap of each of n boxes with one of its class, and which of the m that is (the first of equals).

    -1 and -1 where the image has none of the class.
    """
    if not len(of) or not len(boxes):
        return np.full(len(boxes), -1.0), np.full(len(boxes), -1)
    low, high = np.maximum(boxes[:, None, :2], of[:, :2]), np.minimum(boxes[:, None, 2:], of[:, 2:])
    common = (high - low).clip(0).prod(2)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + (of[:, 2:] - of[:, :2]).prod(1) - common
    overlap = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    overlap[labels[:, None] != of_labels] = -1
    best = overlap.argmax(1)
    greatest = overlap[np.arange(len(boxes)), best]
    return greatest, np.where(greatest < 0, -1, best)


def _right_and_wrong(near: np.ndarray, target: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bool (n,) and (n,) of a class's detections in the order of scores, near enough or not to their targets."""
    right, ignored = np.zeros(len(near), bool), near & difficult[target]
    rivals = np.flatnonzero(near & ~ignored)
    right[rivals[np.unique(target[rivals], return_index=True)[1]]] = True  # the first of each object
    return right, ~right & ~ignored


def _ap(right: np.ndarray, wrong: np.ndarray, positives: int, metric: Metric) -> float:
    """Of 1: what precision is left at each recall or a higher one, at 11 recalls or over all."""
    hits = right.cumsum()
    recall = hits / positives
    precision = hits / np.maximum(hits + wrong.cumsum(), 1)
    left = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)  # 0 at recalls that are not reached
    if metric == "11-point":
        return float(left[np.searchsorted(recall, _RECALLS)].mean())
    return float((np.diff(recall, prepend=0) * left[:-1]).sum())
