"""A part of an image set."""

import difflib
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from simsiam.data.counter import bits
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import ImageSet
from simsiam.data.published_lists import PUBLISHED, published_list
from simsiam.data.subset_lists import all_names, listed
from simsiam.errors import UserError

# What the hashes are for; another number would choose other images for everybody.
_CLASS_ORDER, _IMAGE_ORDER = 0x5B5E701, 0x5B5E702


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
    return take(images, even_places(len(images), count))


def even_places(size: int, count: int) -> np.ndarray:
    """At most `count` of the numbers below `size`, int64, ascending, at equal distances from first to last."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def hold_out(images: ImageSet, count: int) -> tuple[ImageSet, ImageSet]:
    """The other images, and about `count` that are kept apart: equally many of each class, one at least.

    Which they are is a function of their names alone (see `balanced`).

    Raises:
        UserError: a class with a single image, which could be in one part only.
    """
    held = balanced(images, count / len(images))
    rest = np.setdiff1d(np.arange(len(images)), held)
    missing = np.setdiff1d(images.labels[held], images.labels[rest])
    if len(missing):
        raise UserError(
            f"Class {images.classes[missing[0]]} has too few training images to hold some out and train on others; "
            "take a larger --subset, a smaller --held-out, or no --sweep"
        )
    return take(images, rest), take(images, held)


def choose(images: ImageSet, subset: str) -> ImageSet:
    """The part of a training set that `--subset` names, in the order of sample ids, with the same classes.

    Args:
        subset: a fraction such as `0.05` or `5%`, balanced over the classes; `1pct` or `10pct`, the published ImageNet
            lists; or a file of names. A fraction or a published list wins over a file called the same: write `./1pct`.

    Raises:
        UserError: none of those, a list that cannot be fetched, or one that does not fit the set.
    """
    if subset in PUBLISHED:
        path, text = published_list(subset)
        return take(images, listed(images, str(path), text))
    fraction = _fraction(subset)
    if fraction is not None:
        return take(images, balanced(images, fraction))
    path = Path(subset).expanduser()
    if not path.is_file():
        raise UserError(
            f"--subset {subset} is neither a fraction (above 0 and at most 1) nor a list ({', '.join(PUBLISHED)}) nor "
            f"a file of names; {_nearest(subset, path)}"
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"The list {subset} cannot be read ({error.strerror}); allow it or give another") from error
    return take(images, listed(images, subset, text))


def balanced(images: ImageSet, fraction: float) -> np.ndarray:
    """Sample ids, int64 (n,) ascending, of a fraction of the images: the same for everybody.

    The labelled images give round(fraction x N) of theirs, the same number from each class: a class that has fewer
    gives them all and the rest is shared among the others. Each class gives one at least. Images without a label give
    their fraction apart. A larger fraction contains all images of a smaller one. Images are chosen by a hash of their
    file and class names, so they stay the same where others are added or the set lies in another order.
    """
    of_classes = _hashes([*images.classes, ""], len(images.classes) + 1)  # the last is that of -1
    of_files = _hashes((name.rpartition("/")[2] for name in all_names(images)), len(images))
    labels = np.asarray(images.labels)
    chosen = []
    for part in (np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)):
        if len(part):
            total = round(fraction * len(part))
            chosen.append(part[_share_out(of_classes[labels[part]], labels[part], of_files[part], total)])
    return np.sort(np.concatenate(chosen))


def _hashes(names: Iterable[str], count: int) -> np.ndarray:
    return np.fromiter((zlib.crc32(os.fsencode(name)) for name in names), np.int64, count)


def _share_out(of_classes: np.ndarray, labels: np.ndarray, of_files: np.ndarray, total: int) -> np.ndarray:
    """Positions of `total` images, shared out over the classes; all arrays are (n,)."""
    _, first, members, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    total = max(total, len(counts))

    def filled(level: int) -> int:
        return int(np.minimum(counts, level).sum())

    level = bisect_right(range(int(counts.max()) + 1), total, key=filled) - 1  # what each class can give
    quotas = np.minimum(counts, level)
    larger = np.flatnonzero(counts > level)
    in_turn = larger[np.argsort(bits(_CLASS_ORDER, of_classes[first[larger]]), kind="stable")]
    quotas[in_turn[: total - filled(level)]] += 1
    order = np.lexsort((bits(_IMAGE_ORDER, of_classes, of_files), members))  # by class, in each by hash
    place_in_class = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[place_in_class < quotas[members[order]]]


def _fraction(subset: str) -> float | None:
    """The fraction that a text says; None where it says none above 0 and at most 1."""
    number, percent, rest = subset.strip().partition("%")
    try:
        fraction = float(number) / (100 if percent else 1)
    except ValueError:
        return None
    return fraction if 0 < fraction <= 1 and not rest else None


def _nearest(subset: str, path: Path) -> str:
    beside: list[str] = []
    with suppress(OSError):  # no such folder either
        beside = [str(path.with_name(entry.name)) for entry in os.scandir(path.parent) if entry.is_file()]
    near = difflib.get_close_matches(subset, [*PUBLISHED, *beside], n=1)
    return f"did you mean {near[0]}?" if near else f"give one of those, such as 0.1 or {next(iter(PUBLISHED))}"
