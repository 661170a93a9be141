"""`--data` and a split -> the images: a built-in name or a folder."""

import os
from pathlib import Path

from simsiam.data.cache import cache_root
from simsiam.data.image_set import ImageSet
from simsiam.data.index_cache import folder_index, keep_facts
from simsiam.data.sources.binaries import cifar10, cifar100, stl10
from simsiam.data.sources.digits import digits
from simsiam.data.sources.folder import FolderImages
from simsiam.data.sources.shapes import shapes_root
from simsiam.data.sources.shards import INDEX, ShardImages, shard_name
from simsiam.data.sources.transfer_sets import SETS, transfer_set
from simsiam.data.storage import is_url, open_storage, reason
from simsiam.data.survey import survey
from simsiam.errors import UserError

_BINARIES = {"cifar10": cifar10, "cifar100": cifar100, "stl10": stl10}
BUILT_IN = ("shapes", "digits", *_BINARIES, *SETS)
_SPLIT_FOLDERS = {"pretrain": ("train",), "train": ("train",), "val": ("val", "test", "validation")}


def open_dataset(
    data: str,
    split: str,
    *,
    download: bool = False,
    classes: tuple[str, ...] | None = None,
    checksums: bool = False,
    workers: int = 0,
) -> ImageSet:
    """The images of one split.

    Args:
        data: `shapes`, `digits`, `cifar10[:ROOT]`, `cifar100[:ROOT]`, `stl10[:ROOT]`, and likewise `flowers102`,
            `pets`, `food101`, `dtd`, `aircraft`, `cars` (ROOT is `$DATA` by default, else `~/.cache/simsiam`), a folder
            of images or of shards, or a URL of shards. A built-in name wins over a folder called the same: write
            `./shapes` then.
        split: `pretrain` (everything there is to pretrain on, labels or not), `train` (labelled) or `val`. In a folder
            both of the first are FOLDER/train, or FOLDER itself without one; `val` is FOLDER/val, /test or /validation.
        download: fetch what a built-in dataset lacks.
        classes: the train split's classes, so that those of a folder's `val` get the same numbers by name.
        checksums: verify each file as it is read, in shards with the checksums they were packed with; those of a folder
            of images are made on first use, which reads it all.
        workers: processes that read a folder for its checksums.

    Raises:
        UserError: no such dataset, split or file, or a folder that `FolderImages` or `ShardImages` refuses.
        ValueError: a split of another name.
    """
    if split not in _SPLIT_FOLDERS:
        raise ValueError(f"split is pretrain, train or val, not {split!r}")
    name, root = _parse(data)
    if name == "shapes":
        return _folder(shapes_root() / _SPLIT_FOLDERS[split][0], classes, checksums, workers)
    if name == "digits":
        return digits(split)
    if name in SETS:
        return transfer_set(name, root, split, download, classes)
    if name is not None:
        return _BINARIES[name](root, split, download)
    folder = _split_folder(root, split)
    if folder is None:
        raise UserError(
            f"{root} has no validation images: none of the folders val, test or validation is in it; add one"
        )
    if isinstance(folder, str) or _holds_shards(str(folder)):
        return ShardImages(str(folder), classes, verify=checksums)
    return _folder(folder, classes, checksums, workers)


def _folder(root: Path, classes: tuple[str, ...] | None, checksums: bool, workers: int) -> FolderImages:
    index = folder_index(root)
    unread = index.unread() if checksums else ()
    if len(unread):
        images = FolderImages(root, index=index)
        index, _ = survey(images, unread, workers, decoding=False, show_progress=True)
        keep_facts(root, index)
    return FolderImages(root, classes, index=index, verify=checksums)


def has_split(data: str, split: str) -> bool:
    """Whether `open_dataset` would look for the images of a split somewhere: True for all built-in names.

    Raises:
        UserError: `data` is neither a built-in name nor a folder nor a URL that can be opened.
    """
    name, root = _parse(data)
    return name is not None or _split_folder(root, split) is not None


def is_in_splits(data: str) -> bool:
    """Whether the training images are one split of several, and not FOLDER itself. Raises UserError as `has_split`."""
    name, root = _parse(data)
    return name is not None or _split_folder(root, "pretrain") != root


def _parse(data: str) -> tuple[str | None, Path | str]:
    """(built-in name or None, its root or the folder or the URL)."""
    name, colon, root = data.partition(":")
    if name in _BINARIES or name in SETS:
        if colon and not root:
            raise UserError(f"--data {data} names no folder after the colon; write {name}:FOLDER or {name}")
        return name, Path(root or _default_root()).expanduser()
    if data in BUILT_IN:
        return data, Path()
    if not data:
        raise UserError(f"No dataset given; set --data to a folder of images or one of {', '.join(BUILT_IN)}")
    if is_url(data):
        return None, data.rstrip("/")
    folder = Path(data).expanduser()
    if folder.is_dir():
        return None, folder
    if folder.exists():
        raise UserError(f"--data {data} is a file, not a folder of images; give the folder that holds the images")
    raise UserError(
        f"--data {data} is neither a folder nor a built-in dataset; "
        f"give a folder of images or of shards, a URL of shards, or one of {', '.join(BUILT_IN)}"
    )


def _default_root() -> str:
    """`$DATA`, unless it names a built-in dataset or a URL, for it is the default of --data too."""
    data = os.environ.get("DATA", "")
    return str(cache_root()) if data.partition(":")[0] in ("", *BUILT_IN) or is_url(data) else data


def _split_folder(root: Path | str, split: str) -> Path | str | None:
    for name in _SPLIT_FOLDERS[split]:
        if isinstance(root, str) and _holds_shards(f"{root}/{name}"):
            return f"{root}/{name}"
        if isinstance(root, Path) and (root / name).is_dir():
            return root / name
    if split == "val":
        return None
    stray = _split_folder(root, "val")
    if stray is not None:  # it would be taken for a class
        name = str(stray).rpartition("/")[2]
        raise UserError(f"{root} holds {name} but no train; move the training images into {root}/train")
    return root


def _holds_shards(place: str) -> bool:
    """Whether a folder or URL is one of shards, be it that their packing has not come to its end."""
    storage = open_storage(place)
    try:
        return storage.has(INDEX) or storage.has(shard_name(0))
    except OSError as error:
        raise UserError(f"{place} cannot be looked at ({reason(error)}); check the place and your access") from error
