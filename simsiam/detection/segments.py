"""Outlines of objects as COCO writes them, in flat arrays, and their pixels when somebody asks."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

_NONE, _POLYGONS, _COUNTS, _STRING = range(4)
_FEWEST_NUMBERS = 6  # of a polygon: three corners
_FAR = 1e6  # pixels
_MOST_BITS = 40  # of a run length; a number without an end would take the square of its length to add up


class Segments:
    """The outlines of A objects: polygons or run lengths, or none.

    Coordinates stay float64: COCO's rasteriser multiplies by 5 and cuts off, so a value rounded to float32 can move an
    edge by a pixel.

    Args:
        kinds: uint8 (A,), what each object has.
        firsts: int64 (A + 1,), where the parts of each begin in `ends`, less the 0 in front.
        ends: int64 (P + 1,), where each part ends in `numbers`; a part is a polygon, or a mask's run lengths.
        numbers: float64, x and y of corners in pixels, or run lengths, or the bytes of compressed ones.
    """

    def __init__(self, kinds: np.ndarray, firsts: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> None:
        self.kinds, self.firsts, self.ends, self.numbers = kinds, firsts, ends, numbers

    def __len__(self) -> int:
        return len(self.kinds)

    def present(self) -> np.ndarray:
        """Which objects have an outline, bool (A,)."""
        return self.kinds != _NONE

    def masks(self, rows: np.ndarray, height: int, width: int) -> np.ndarray:
        """Masks of some objects of one image, uint8 (n, height, width) of 0 and 1, equal to pycocotools'.

        Without an outline a mask is all 0.
        """
        masks = np.zeros((len(rows), height, width), np.uint8)
        outlined = np.flatnonzero(self.present()[rows])
        if len(outlined):
            decoded = coco_mask.decode([self._encoded(row, height, width) for row in rows[outlined].tolist()])
            masks[outlined] = decoded.transpose(2, 0, 1)
        return masks

    def _encoded(self, row: int, height: int, width: int) -> dict[str, Any]:
        """An object in COCO's compressed run lengths."""
        parts = [
            self.numbers[self.ends[part] : self.ends[part + 1]]
            for part in range(self.firsts[row], self.firsts[row + 1])
        ]
        if self.kinds[row] == _POLYGONS:
            polygons = [part.tolist() for part in parts]
            return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        if self.kinds[row] == _STRING:
            return {"size": [height, width], "counts": parts[0].astype(np.uint8).tobytes()}
        counts = parts[0].astype(np.int64).tolist()
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


class SegmentsBuilder:
    """Takes the outlines of one object after another, each a `segmentation` of COCO's JSON."""

    def __init__(self) -> None:
        self._kinds, self._firsts = array("B"), array("q", [0])
        self._ends, self._numbers = array("q", [0]), array("d")

    def add(self, segmentation: object, height: int, width: int) -> bool:
        """Appends an object; what no mask of height x width can be made of is taken for none, and False returned.

        As in Detectron2, polygons of fewer than three corners are left out.
        """
        parts, kind = [], _NONE
        if isinstance(segmentation, list):
            parts, kind = [corners for part in segmentation if (corners := _polygon(part)) is not None], _POLYGONS
        elif isinstance(segmentation, dict) and list(segmentation.get("size", ())) == [height, width]:
            parts, kind = _run_lengths(segmentation.get("counts"), height * width)
        if not parts:
            kind = _NONE
        for part in parts:
            self._numbers.extend(part)
            self._ends.append(len(self._numbers))
        self._kinds.append(kind)
        self._firsts.append(len(self._ends) - 1)
        return kind != _NONE

    def build(self) -> Segments:
        """What was added."""
        return Segments(
            np.array(self._kinds, np.uint8),
            np.array(self._firsts, np.int64),
            np.array(self._ends, np.int64),
            np.array(self._numbers, np.float64),
        )


def _polygon(part: object) -> array | None:
    """Corners x, y, x, y, ...; None for what is no polygon, or so far outside that the rasteriser would run away."""
    if not isinstance(part, list) or len(part) < _FEWEST_NUMBERS or len(part) % 2:
        return None
    try:
        corners = array("d", part)
    except TypeError:
        return None
    near = min(corners) > -_FAR and max(corners) < _FAR
    return corners if near and math.isfinite(sum(corners)) else None


def _run_lengths(counts: object, pixels: int) -> tuple[list[Sequence[int]], int]:
    """The part and its kind; no part where the runs do not fill the image: the decoder would write beyond it."""
    if isinstance(counts, str) and counts.isascii():
        part = counts.encode()
        return ([part] if _string_total(part) == pixels else []), _STRING
    if isinstance(counts, list) and set(map(type, counts)) <= {int} and min(counts, default=-1) >= 0:
        return ([counts] if sum(counts) == pixels else []), _COUNTS
    return [], _NONE


def _string_total(part: bytes) -> int:
    """The sum of compressed run lengths; -1 where they are damaged.

    Each number is 5 bits a byte, the lowest first, 48 added, with bit 5 where more follow and the sign in the last
    one's bit 4; from the fourth on it is the difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in part:
        code = byte - 48
        if not 0 <= code < 64:
            return -1
        value |= (code & 31) << shift
        shift += 5
        if shift > _MOST_BITS:
            return -1
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return sum(runs) if not shift else -1
