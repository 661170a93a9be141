"""Images on disk: one folder per class, or a folder of images without classes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index, Strings
from simsiam.data.storage import patiently, read_whole, reason
from simsiam.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_THREADS = 8  # class folders listed at a time: on a network file system each is a round trip or more


class FolderImages(EncodedImages):
    """The images below a folder, as an `ImageSet`.

    `ROOT/CLASS/**/IMAGE` is labelled by CLASS, classes and files in the order of their names; images directly in ROOT,
    with no image in any subfolder, are unlabelled. Names that begin with a dot are skipped.

    Args:
        root: the folder.
        classes: class names whose numbers to use, those of the train split for its val split: a class is matched by
            name, so one that has no folder here shifts no other. By default the folders here, sorted.
        index: what `scan` found earlier; by default the folder is scanned.
        verify: as in `EncodedImages`.

    Raises:
        UserError: no such folder, no image in it, an empty class folder, images both in ROOT and in class folders, or
            a class folder that `classes` lacks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        *,
        index: Index | None = None,
        verify: bool = False,
    ) -> None:
        self.root = Path(root)
        index = index or scan(self.root).index
        super().__init__(index.numbered_by(classes, str(self.root)), verify)

    def _stored(self, sample: int) -> bytes:
        path = self.root / self.name(sample)
        try:
            return patiently(lambda: read_whole(path))
        except OSError as error:
            raise BadImage(reason(error)) from error


class Scan(NamedTuple):
    """A folder's index, and what tells later whether it has changed.

    Attributes:
        folders: every folder below the root, and the root itself as ``.``.
        changed_ns: int64, when each was last changed, ns since 1970; a file that comes, goes or is renamed changes it.
    """

    index: Index
    folders: Strings
    changed_ns: np.ndarray


def scan(root: Path) -> Scan:
    """Lists a folder of images, and looks at none: the size of a file costs more than its whole listing.

    Errors as in `FolderImages`, and UserError for a folder that cannot be listed.
    """
    if not root.exists():
        raise UserError(f"The image folder {root} does not exist; give the path of one that does")
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a folder of images; give the folder that holds the images")
    top = _list(str(root), ".")
    with ThreadPoolExecutor(_THREADS) as pool:
        per_class = list(pool.map(lambda name: _walk(str(root), name), top.folders))
    labelled = any(listing.images for listings in per_class for listing in listings)
    if not labelled and not top.images:
        raise UserError(
            f"No image in {root}: put one folder per class there, or images themselves ({' '.join(EXTENSIONS)})"
        )
    if labelled and top.images:
        raise UserError(
            f"{root} holds both class folders and {len(top.images)} loose images such as {top.images[0]}; "
            "move the loose ones into a class folder or out of it"
        )
    if labelled:
        counts = [sum(len(listing.images) for listing in listings) for listings in per_class]
        _refuse_empty(root, [name for name, count in zip(top.folders, counts) if not count])
        classes, labels = tuple(top.folders), np.repeat(np.arange(len(counts)), counts)
    else:
        classes, labels = (), np.full(len(top.images), -1)
    listings = [top, *chain.from_iterable(per_class)]
    index = Index(
        names=Strings.of(chain.from_iterable(map(_paths, listings))),
        labels=labels.astype(np.int64),
        classes=classes,
    )
    changed_ns = np.array([listing.changed_ns for listing in listings], np.int64)
    return Scan(index, Strings.of(listing.folder for listing in listings), changed_ns)


def left_out(root: Path) -> list[str]:
    """Paths from the root of files that no ending makes an image, in order; those that begin with a dot aside."""
    found = []
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        others = (name for name in files if not name.startswith(".") and not name.lower().endswith(EXTENSIONS))
        found += [os.path.relpath(os.path.join(place, name), root) for name in sorted(others)]
    return found


class _Listing(NamedTuple):
    """One folder: its path from the root, when it changed, its subfolders and images in order."""

    folder: str
    changed_ns: int
    folders: list[str]
    images: list[str]


def _list(root: str, folder: str) -> _Listing:
    path = os.path.join(root, folder)
    folders, images = [], []
    try:
        changed_ns = os.stat(path).st_mtime_ns  # before the listing: a change while it is read is noticed next time
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().endswith(EXTENSIONS) and not entry.is_dir():
                    images.append(name)
                elif entry.is_dir():
                    folders.append(name)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be listed ({error.strerror}); make it readable or move it out of {root}"
        ) from error
    images, folders = (sorted(n for n in names if not n.startswith(".")) for names in (images, folders))
    return _Listing(folder, changed_ns, folders, images)


def _paths(listing: _Listing) -> list[str]:
    return listing.images if listing.folder == "." else [f"{listing.folder}/{name}" for name in listing.images]


def _walk(root: str, folder: str) -> list[_Listing]:
    """A folder's own listing, then those of all folders below it."""
    own = _list(root, folder)
    below = (_walk(root, f"{folder}/{name}") for name in own.folders)
    return [own, *chain.from_iterable(below)]


def _refuse_empty(root: Path, empty: list[str]) -> None:
    if empty:
        names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        plural = "s" if len(empty) > 1 else ""
        raise UserError(f"No image in the class folder{plural} {names} of {root}: fill or remove the folder{plural}")
