"""A list of image names, as others publish them -> the samples of a set that it names."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import ImageSet
from simsiam.errors import UserError

_WITH_LABEL = re.compile(r"(.*\S)\s+(-?[0-9]{1,9})")
_LONGEST_LINE = 4200  # a path has 4096 letters at most, and each / costs a copy of what follows it
_SEVERAL = -1  # what a name stands for that more than one image has


def all_names(images: ImageSet) -> Iterable[str]:
    """The name of each image in the order of sample ids; a million take a quarter of a second from an index."""
    return images.index.names if isinstance(images, EncodedImages) else map(images.name, range(len(images)))


def listed(images: ImageSet, file: str, text: bytes) -> np.ndarray:
    """Sample ids, int64 (n,) ascending, of the images that a list names.

    A line is a path, or a path, whitespace and a label number; blank lines and those that begin with # are skipped. Of
    a path as much counts as agrees with the name of an image from its end (`train/n01/x.JPEG` is `n01/x.JPEG`); where
    nothing does, the bare file name, if one image alone has it. A path may hold spaces: a line is a path as a whole
    if it names an image, and only else ends in a label.

    Args:
        file: what to call the list in a message.
        text: its bytes.

    Raises:
        UserError: an empty list; names that no image has, that several have or that come twice; labels that do not
            stand one for one for the classes of the set.
    """
    entries = _entries(file, text)
    if not entries:
        raise UserError(f"The list {file} names no image; write one file name a line")
    known = _Known(images, entries)
    found, numbers = zip(*map(known.find, entries))
    unknown = [entry for entry, sample in zip(entries, found) if sample is None]
    _refuse(
        f"Names that none of the {len(images):,} training images has",
        file,
        entries,
        unknown,
        "correct them, or set --data to the images that the list was made for",
    )
    several = [entry for entry, sample in zip(entries, found) if sample == _SEVERAL]
    _refuse("Names that several images have", file, entries, several, "write them with their folder, FOLDER/NAME")
    samples = np.array(found, np.int64)
    once, first = np.unique(samples, return_index=True)
    again = [entries[place] for place in np.setdiff1d(np.arange(len(entries)), first).tolist()]
    _refuse("Images named more than once", file, entries, again, "remove the repetitions")
    _check_labels(images, file, entries, numbers, samples)
    return once


class _Entry(NamedTuple):
    """A line of a list: its number from 1, all of it, and (name, label) where it may end in a label."""

    line: int
    whole: str
    split: tuple[str, int] | None


def _entries(file: str, text: bytes) -> list[_Entry]:
    lines = os.fsdecode(text.removeprefix(b"\xef\xbb\xbf")).split("\n")
    entries = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if len(line) > _LONGEST_LINE:
            raise UserError(f"Line {number} of the list {file} has {len(line):,} letters; write one file name a line")
        if line and not line.startswith("#"):
            parts = _WITH_LABEL.fullmatch(line)
            entries.append(_Entry(number, line, (parts[1], int(parts[2])) if parts else None))
    return entries


class _Known:
    """The images that the names in a list may mean: a look-up of these alone, for a set may hold ten times as many."""

    def __init__(self, images: ImageSet, entries: list[_Entry]) -> None:
        readings = [entry.whole for entry in entries] + [entry.split[0] for entry in entries if entry.split]
        paths = {ending for reading in readings for ending in _endings(reading)}
        bare = {reading.rpartition("/")[2] for reading in readings}
        self._by_path: dict[str, int] = {}
        self._by_bare: dict[str, int] = {}
        for sample, name in enumerate(all_names(images)):
            if name in paths:
                self._by_path[name] = sample
            file_name = name.rpartition("/")[2]
            if file_name in bare:
                self._by_bare[file_name] = _SEVERAL if file_name in self._by_bare else sample

    def find(self, entry: _Entry) -> tuple[int | None, int | None]:
        """The sample that a line names, `_SEVERAL` or None, and the label that it gives, or None."""
        sample = self._find(entry.whole)
        if sample is not None or entry.split is None:
            return sample, None
        name, number = entry.split
        return self._find(name), number if number >= 0 else None

    def _find(self, name: str) -> int | None:
        for ending in _endings(name):
            if ending in self._by_path:
                return self._by_path[ending]
        return self._by_bare.get(name.rpartition("/")[2])


def _endings(path: str) -> list[str]:
    """`a/b/c` -> `a/b/c`, `b/c`, `c`."""
    endings = [path]
    while "/" in path:
        path = path.partition("/")[2]
        endings.append(path)
    return endings


def _refuse(what: str, file: str, entries: list[_Entry], wrong: list[_Entry], remedy: str) -> None:
    if wrong:
        raise UserError(
            f"{what}: {len(wrong):,} of {len(entries):,} in the list {file}, the first on line {wrong[0].line}, "
            f"{wrong[0].whole[:200]!r}; {remedy}"
        )


def _check_labels(
    images: ImageSet, file: str, entries: list[_Entry], numbers: Sequence[int | None], samples: np.ndarray
) -> None:
    """Lists number the classes as they like, but a number must stand for one class and a class for one number."""
    class_of: dict[int, tuple[int, int]] = {}  # number in the list -> (our class, first line)
    number_of: dict[int, tuple[int, int]] = {}  # our class -> (number in the list, first line)
    for entry, number, label in zip(entries, numbers, np.asarray(images.labels)[samples].tolist()):
        if number is None or label < 0:
            continue
        other, line = class_of.setdefault(number, (label, entry.line))
        if other != label:
            clash = f"is of class {images.classes[label]}, but on line {line} {number} is {images.classes[other]}"
        else:
            other, line = number_of.setdefault(label, (number, entry.line))
            if other == number:
                continue
            clash = f"is of class {images.classes[label]}, which is {other} on line {line}"
        raise UserError(
            f"The labels of the list {file} contradict the classes of the training images: line {entry.line}, "
            f"{entry.whole[:200]!r}, {clash}; correct the labels or leave them out"
        )
