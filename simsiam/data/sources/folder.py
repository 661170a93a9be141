"""Images on disk: one folder per class, or a folder of images without classes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from simsiam.data.decode import decode
from simsiam.data.image_set import BadImage
from simsiam.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class FolderImages:
    """The images below a folder, as an `ImageSet`.

    `ROOT/CLASS/**/IMAGE` is labelled by CLASS, classes and files in the order of their names; images directly in ROOT,
    with no image in any subfolder, are unlabelled. Names that begin with a dot are skipped.

    Args:
        root: the folder.
        classes: class names whose numbers to use, those of the train split for its val split: a class is matched by
            name, so one that has no folder here shifts no other. By default the folders here, sorted.

    Raises:
        UserError: no such folder, no image in it, an empty class folder, images both in ROOT and in class folders, or
            a class folder that `classes` lacks.
    """

    def __init__(self, root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"The image folder {self.root} does not exist; give the path of one that does.")
        if not self.root.is_dir():
            raise UserError(f"{self.root} is a file, not a folder of images; give the folder that holds the images.")
        folders, loose = _list(self.root)
        per_class = [(name, list(_walk(self.root / name, name + "/"))) for name in folders]
        labelled = any(paths for _, paths in per_class)
        if not labelled and not loose:
            raise UserError(
                f"No image in {self.root}: put one folder per class there, or images themselves "
                f"({' '.join(EXTENSIONS)})."
            )
        if labelled and loose:
            raise UserError(
                f"{self.root} holds both class folders and {len(loose)} loose images such as {loose[0]}; "
                "move the loose ones into a class folder or out of it."
            )
        if labelled:
            _refuse_empty(self.root, [name for name, paths in per_class if not paths])
            self.classes = tuple(classes or folders)
            numbers = _numbers(self.root, folders, self.classes)
            counts = [len(paths) for _, paths in per_class]
            self.labels = np.repeat(np.array(numbers, dtype=np.int64), counts)
            self._paths = _Strings(path for _, paths in per_class for path in paths)
        else:
            self.classes = ()
            self.labels = np.full(len(loose), -1, dtype=np.int64)
            self._paths = _Strings(loose)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, sample: int) -> str:
        """The path of a sample relative to the root, with `/` between folders."""
        return os.fsdecode(self._paths[sample])

    def read_bytes(self, sample: int) -> bytes:
        """The file of a sample as it is on disk. Raises `BadImage` where it cannot be read."""
        try:
            with open(os.path.join(os.fsencode(self.root), self._paths[sample]), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error

    def read(self, sample: int) -> torch.Tensor:
        """The whole image, uint8 (3, H, W) RGB. Raises `BadImage` where it cannot be read or decoded."""
        return decode(self.read_bytes(sample))


class _Strings:
    """Paths in two numpy arrays: Python strings would be copied into every forked worker as their counts change."""

    def __init__(self, strings: Iterator[str] | list[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self._ends) - 1:
            raise IndexError(index)
        return self._blob[self._ends[index] : self._ends[index + 1]].tobytes()


def _list(folder: Path | str) -> tuple[list[str], list[str]]:
    """Names of the subfolders and of the images in a folder, each sorted."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir():
                images.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    return sorted(folders), sorted(images)


def _walk(folder: Path | str, prefix: str) -> Iterator[str]:
    """Paths of all images below a folder, with `prefix` before each: a folder's own first, then its subfolders'."""
    folders, images = _list(folder)
    for image in images:
        yield prefix + image
    for name in folders:
        yield from _walk(os.path.join(folder, name), f"{prefix}{name}/")


def _refuse_empty(root: Path, empty: list[str]) -> None:
    if empty:
        names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        plural = "s" if len(empty) > 1 else ""
        raise UserError(f"No image in the class folder{plural} {names} of {root}: fill or remove the folder{plural}.")


def _numbers(root: Path, folders: list[str], classes: tuple[str, ...]) -> list[int]:
    number = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in folders if name not in number]
    if unknown:
        raise UserError(
            f"The class folder {root / unknown[0]} has no counterpart among the {len(classes)} classes of the train "
            "split; remove it, rename it or add the class there."
        )
    return [number[name] for name in folders]
