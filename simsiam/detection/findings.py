"""What is wrong with an annotated set, found before training from names and numbers alone: nothing is decoded."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simsiam.detection.annotations import DetectionSet, clipped, has_area

MISSING_IMAGE = "no image file (it will count as unreadable)"
OUTSIDE = "with a box that leaves the image (training clips it)"
NO_AREA = "with a box of no area (training leaves it out)"
NO_OUTLINE = "with an object without a usable outline (left out of training masks)"
TINY = "with a side of 1 pixel or none"
HUGE = "with a side of 10,000 pixels or more"
_HUGE_SIDE = 10_000
_TOLERANCE = 0.05  # pixels beyond the edge that rounding to a decimal or two explains
_NAMED = 3


class Findings(NamedTuple):
    """What a set holds, and what is wrong with it.

    Attributes:
        images, objects, crowds, difficult, classes: how many.
        problems: finding -> one name an occurrence, the path of an image or what else it is about.
    """

    images: int
    objects: int
    crowds: int
    difficult: int
    classes: int
    problems: dict[str, list[str]]

    def lines(self) -> list[str]:
        """For a person: the counts in the first line, then one for each finding with its first names."""
        marked = [
            f"{number:,} {what}" for number, what in ((self.crowds, "crowds"), (self.difficult, "difficult")) if number
        ]
        of_them = f" ({', '.join(marked)})" if marked else ""
        first = f"{self.images:,} images, {self.objects:,} objects{of_them} of {self.classes:,} classes"
        return [first, *(_line(what, names) for what, names in self.problems.items())]


def check(images: DetectionSet) -> Findings:
    """Looks through the numbers of a set and lists its image folders.

    What no training could go on with, such as an unknown class, was an error when the set was opened.
    """
    objects, names = images.objects, [images.name(image) for image in range(len(images))]
    owners = np.repeat(np.arange(len(images)), images.counts)
    of_set = [images.objects_of(image) for image in range(len(images))]
    rows = np.concatenate(of_set) if of_set else np.zeros(0, np.int64)
    sizes, boxes = images.sizes, objects.boxes[rows]
    inside = clipped(boxes, *sizes[owners].T)
    sized = (sizes > 0).all(axis=1)
    flat = ~has_area(inside)
    leaves = (np.abs(inside - boxes) > _TOLERANCE).any(axis=1) & ~flat & sized[owners]
    found = {
        MISSING_IMAGE: _missing(images.root, names),
        OUTSIDE: [names[image] for image in owners[leaves]],
        NO_AREA: [names[image] for image in owners[flat & sized[owners]]],
        TINY: [names[image] for image in np.flatnonzero((sizes <= 1).any(axis=1))],
        HUGE: [names[image] for image in np.flatnonzero((sizes >= _HUGE_SIDE).any(axis=1))],
    }
    if objects.segments is not None:
        found[NO_OUTLINE] = [names[image] for image in owners[~objects.segments.present()[rows]]]
    problems = {what: list(about) for what, about in {**images.noted, **found}.items() if about}
    crowds, difficult = int(objects.is_crowd[rows].sum()), int(objects.is_difficult[rows].sum())
    return Findings(len(images), len(rows), crowds, difficult, len(images.classes), problems)


def _missing(root: Path, names: list[str]) -> list[str]:
    """The names that no file has. Folders are listed: 118,000 questions cost a network file system minutes."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(root / folder))
            except OSError:
                listed[folder] = set()
        if file not in listed[folder]:
            missing.append(name)
    return missing


def _line(what: str, names: list[str]) -> str:
    shown = ", ".join(list(dict.fromkeys(names))[:_NAMED])
    return f"{len(names):,} {what}: {shown}{', ...' if len(set(names)) > _NAMED else ''}"
