"""The sets that classification transfer is measured on, as torchvision's classes of their names find them on disk."""

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torchvision.datasets as published

from simsiam.data.index import Index, Strings
from simsiam.data.sources.downloads import unpacking_inside
from simsiam.data.sources.folder import FolderImages
from simsiam.data.storage import is_inside
from simsiam.errors import UserError


class _Set(NamedTuple):
    """torchvision's class, its names of the parts of our splits, and the folder below ROOT that it reads."""

    read: Callable
    splits: dict[str, tuple[str, ...]]
    folder: str


_TRAINVAL = {"train": ("trainval",), "val": ("test",)}
_TRAIN_AND_VAL = {"train": ("train", "val"), "val": ("test",)}
_TRAIN = {"train": ("train",), "val": ("test",)}
SETS = {
    "flowers102": _Set(published.Flowers102, _TRAIN_AND_VAL, "flowers-102"),
    "pets": _Set(published.OxfordIIITPet, _TRAINVAL, "oxford-iiit-pet"),
    "food101": _Set(published.Food101, _TRAIN, "food-101"),
    "dtd": _Set(published.DTD, _TRAIN_AND_VAL, "dtd"),
    "aircraft": _Set(published.FGVCAircraft, _TRAINVAL, "fgvc-aircraft-2013b"),
    "cars": _Set(published.StanfordCars, _TRAIN, "stanford_cars"),
}


def transfer_set(
    name: str, root: Path, split: str, download: bool, classes: Sequence[str] | None = None
) -> FolderImages:
    """A split of flowers102, pets, food101, dtd, aircraft or cars: train is all that the papers train on.

    Args:
        root: the folder that torchvision is given, which holds that of the set.
        classes: names whose numbers to use, those of the train split for the val split.

    Raises:
        UserError: the set is not there, or cannot be downloaded.
    """
    told = SETS[name]
    files: list[str] = []
    named: list[str] = []
    known = dict.fromkeys(classes or ())
    for part in told.splits["val" if split == "val" else "train"]:
        try:
            with unpacking_inside():
                found = told.read(str(root), split=part, download=download)
        except (RuntimeError, OSError, ValueError, tarfile.TarError) as error:
            raise UserError(
                f"--data {name}:{root} has no {part} split of {name} ({str(error).splitlines()[0]}); "
                f"put {told.folder} there as torchvision expects it, or add --download"
            ) from None
        paths, numbers = _listed(found)
        files += [_inside(path, root) for path in paths]
        # By name, for some of torchvision's classes number only what a part holds.
        named += [found.classes[number] for number in numbers]
        known.update(dict.fromkeys(found.classes))
    number_of = {name: number for number, name in enumerate(known)}
    labels = np.array([number_of[name] for name in named], np.int64)
    return FolderImages(root, index=Index(names=Strings.of(files), labels=labels, classes=tuple(known)))


def _inside(path: os.PathLike | str, root: Path) -> str:
    """A listed file from the root."""
    name = os.path.relpath(path, root)
    if not is_inside(name):
        raise UserError(f"A list of {root} names {name!r}, which is not below it; unpack the set again")
    return name


def _listed(found: published.VisionDataset) -> tuple[list[os.PathLike | str], list[int]]:
    """Files and labels of a torchvision set, which has no public list of them without decoding every image."""
    if hasattr(found, "_samples"):
        return tuple(map(list, zip(*found._samples)))
    return list(getattr(found, "_image_files", None) or found._images), list(found._labels)
