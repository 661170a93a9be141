"""CIFAR-10, CIFAR-100 and STL-10 from the files that torchvision keeps on disk.

torchvision downloads and verifies; the files are read here, because its classes hash everything at each start (STL-10:
3 GB), and so that a subset in the same format works too.
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.sources.downloads import unpacking_inside
from simsiam.errors import UserError
from simsiam.pickled_arrays import PickledArray, load_arrays

_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def cifar10(root: str | Path, split: str, download: bool = False) -> ArrayImages:
    """CIFAR-10 from `ROOT/cifar-10-batches-py`: 32x32, ten classes.

    Args:
        root: the folder that holds the folder of binaries.
        split: `train` and `pretrain` are the five training batches, `val` the test batch.
        download: fetch the files where they are missing.

    Raises:
        UserError: files missing and `download` not set, a failed download, or a damaged file.
    """
    batches = ["test_batch"] if split == "val" else [f"data_batch_{number}" for number in range(1, 6)]
    folder = _present("CIFAR10", Path(root), "cifar-10-batches-py", [*batches, "batches.meta"], download)
    return _cifar(folder, batches, "labels", "batches.meta", "label_names", f"cifar10/{split}")


def cifar100(root: str | Path, split: str, download: bool = False) -> ArrayImages:
    """CIFAR-100 with its fine labels from `ROOT/cifar-100-python`; arguments and errors as in `cifar10`."""
    batches = ["test"] if split == "val" else ["train"]
    folder = _present("CIFAR100", Path(root), "cifar-100-python", [*batches, "meta"], download)
    return _cifar(folder, batches, "fine_labels", "meta", "fine_label_names", f"cifar100/{split}")


def stl10(root: str | Path, split: str, download: bool = False) -> ArrayImages:
    """STL-10 from `ROOT/stl10_binary`: 96x96, ten classes.

    Args:
        root: the folder that holds the folder of binaries.
        split: `train` is the 5,000 labelled images, `pretrain` those and then the 100,000 unlabelled ones (label -1,
            2.9 GB in memory), `val` the test set.
        download: fetch the files where they are missing.

    Raises:
        UserError: files missing and `download` not set, a failed download, or a damaged file.
    """
    stem = "test" if split == "val" else "train"
    names = [f"{stem}_X.bin"] + (["unlabeled_X.bin"] if split == "pretrain" else [])
    folder = _present("STL10", Path(root), "stl10_binary", [*names, f"{stem}_y.bin"], download)
    labels = np.fromfile(folder / f"{stem}_y.bin", dtype=np.uint8).astype(np.int64) - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(_STL10_CLASSES):
        raise _damaged(folder / f"{stem}_y.bin", "it has labels outside 1 to 10")
    images = _stl10_images([folder / name for name in names])
    if len(images) < len(labels) or (split != "pretrain" and len(images) != len(labels)):
        raise _damaged(folder / names[0], f"{len(images)} images have {len(labels)} labels")
    labels = np.concatenate([labels, np.full(len(images) - len(labels), -1)])
    return ArrayImages(images, labels, _STL10_CLASSES, f"stl10/{split}")


def _present(dataset: str, root: Path, folder: str, files: list[str], download: bool) -> Path:
    """The folder of binaries with all `files` in it, downloaded if need be."""
    missing = [name for name in files if not (root / folder / name).is_file()]
    if missing and download:
        import torchvision.datasets

        try:
            with unpacking_inside():
                getattr(torchvision.datasets, dataset)(root, download=True)
        except (OSError, RuntimeError, tarfile.TarError) as error:  # URLError is an OSError
            raise UserError(
                f"The download of {dataset} to {root} failed ({error}); try again or copy it there"
            ) from error
        missing = [name for name in files if not (root / folder / name).is_file()]
    if missing:
        raise UserError(
            f"{dataset} is not in {root} ({folder}/{missing[0]} is missing); add --download, or name the folder that "
            f"holds {folder} as {dataset.lower()}:FOLDER"
        )
    return root / folder


def _cifar(folder: Path, batches: list[str], label_key: str, meta: str, names_key: str, prefix: str) -> ArrayImages:
    contents = [_unpickle(folder / batch, ("data", label_key)) for batch in batches]
    rows = np.concatenate([content["data"] for content in contents])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        raise _damaged(folder / batches[0], f"its images are {rows.dtype} {rows.shape}")
    labels = np.concatenate([np.asarray(content[label_key], dtype=np.int64) for content in contents])
    if len(labels) != len(rows):
        raise _damaged(folder / batches[0], f"{len(rows)} images have {len(labels)} labels")
    classes = _unpickle(folder / meta, (names_key,))[names_key]
    return ArrayImages(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, classes, prefix)


def _unpickle(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = load_arrays(path.read_bytes())
        found = (content[key] for key in keys)
        return dict(zip(keys, (value.array() if isinstance(value, PickledArray) else value for value in found)))
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _damaged(path, str(error) or type(error).__name__) from error


def _stl10_images(paths: list[Path]) -> np.ndarray:
    """Columns first, planes first on disk -> uint8 (N, 96, 96, 3), filled in place: the unlabelled part is 2.8 GB."""
    per_image = 3 * 96 * 96
    sizes = [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size == 0 or size % per_image:
            raise _damaged(path, f"its {size} bytes are no whole number of images")
    images = np.empty((sum(sizes) // per_image, 96, 96, 3), dtype=np.uint8)
    start = 0
    for path, size in zip(paths, sizes, strict=True):
        stop = start + size // per_image
        on_disk = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)
        images[start:stop] = on_disk.transpose(0, 3, 2, 1)
        start = stop
    return images


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); delete it and run again with --download")
