"""What a preflight looks for in a dataset: odd, changed and repeated files, and classes that are out of balance."""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import ImageSet
from simsiam.data.index import FACTS, Index
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.survey import survey

NOT_JPEG, EXTENSION, CMYK, GRAY, SIXTEEN_BIT, ANIMATED, TINY = (1 << place for place in range(7))
ODD = {
    NOT_JPEG: "not JPEG by content",
    EXTENSION: "with the extension of another format",
    CMYK: "CMYK",
    GRAY: "gray",
    SIXTEEN_BIT: "of 16-bit samples",
    ANIMATED: "animated (the first frame counts)",
    TINY: "with a shorter side under 32 pixels",
}
"""Bit -> what to call it."""
_TINY_SIDE = 32
_FORMAT_OF = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"},
    **{".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM"},
}
_FORMATS = tuple(sorted(set(_FORMAT_OF.values())))
_GRAY_MODES = ("1", "L", "LA", "La", "F")
_TIFF_BITS_PER_SAMPLE = 258


class Findings(NamedTuple):
    """What one reading pass over a set has found.

    Attributes:
        index: the set's index with the byte lengths, pixels and checksums as they are now.
        bad: sample -> reason, for the images that cannot be read or decoded.
        odd: uint8 (N,), the bits of `ODD` that hold for each image.
    """

    index: Index
    bad: dict[int, str]
    odd: np.ndarray


def read_all(images: EncodedImages, workers: int, *, show_progress: bool) -> Findings:
    """Reads and decodes every image of a set once, in worker processes."""
    watched = _Watched(images)
    index, bad = survey(watched, np.arange(len(images)), workers, decoding=True, show_progress=show_progress)
    odd = watched.odd.numpy().copy()
    side = index.pixels.min(axis=1)
    odd[(side > 0) & (side < _TINY_SIDE)] |= TINY
    return Findings(index, bad, odd)


class _Watched(EncodedImages):
    """A set that notes what is odd about each file as it is read, in memory that all worker processes share."""

    def __init__(self, images: EncodedImages) -> None:
        super().__init__(images.index)
        self._images = images
        self.odd = torch.zeros(len(images), dtype=torch.uint8).share_memory_()

    def _stored(self, sample: int) -> bytes:
        data = self._images.read_bytes(sample)
        self.odd[sample] = odd_bits(self.name(sample), data)
        return data


def odd_bits(name: str, data: bytes) -> int:
    """The bits of `ODD`, but TINY, of one encoded image called `name`; 0 where it is no image at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and broken EXIF, which are not what is asked here
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                content, mode = "JPEG" if image.format == "MPO" else image.format, image.mode
                bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, 8) if content == "TIFF" else 8
                # A JPEG's further pictures (MPO) are previews and stereo partners, not frames.
                frames = 1 if content == "JPEG" else getattr(image, "n_frames", 1)
    except Exception:  # PIL's plugins raise anything from SyntaxError to struct.error on damaged data
        return 0
    is_deep = mode.startswith("I") or np.max(bits) >= 16 or (content == "PNG" and data[24:25] == b"\x10")
    found = {
        NOT_JPEG: content != "JPEG",
        EXTENSION: _FORMAT_OF.get(os.path.splitext(name)[1].lower(), content) != content,
        CMYK: mode == "CMYK",
        GRAY: mode in _GRAY_MODES or mode.startswith("I"),
        SIXTEEN_BIT: is_deep,
        ANIMATED: frames > 1,
    }
    return sum(bit for bit, holds in found.items() if holds)


def changed(before: Index, now: Index) -> np.ndarray:
    """Rows, int64 (n,), of files whose bytes are not those of an earlier pass; unreadable and new files are none."""
    if before.checksums is None or now.checksums is None:
        return np.zeros(0, np.int64)
    differ = (before.checksums != now.checksums) | (before.byte_lengths != now.byte_lengths)
    return np.flatnonzero(differ & before.is_read() & now.is_read())


def learnt(before: Index, now: Index, *, take_in: bool) -> Index:
    """The facts to keep of two passes: what an earlier one knew of a file stands where this one could not read it.

    Args:
        take_in: files that have changed count as they are now, and not as they were.
    """
    if before.byte_lengths is None:
        return now
    stays = before.is_read() & ~now.is_read()
    if not take_in:
        stays[changed(before, now)] = True
    facts = {}
    for name in FACTS:
        old, new = getattr(before, name), getattr(now, name)
        facts[name] = np.where(stays.reshape(-1, *[1] * (new.ndim - 1)), old, new)
    return replace(now, **facts)


class Prints(NamedTuple):
    """What tells images apart: rows, int64 (n,) ascending, and a number for the content of each, uint64 (n,)."""

    rows: np.ndarray
    contents: np.ndarray


def prints(images: ImageSet, index: Index | None) -> Prints:
    """Length and checksum of each image: of the file where there is an index, else of the pixels in memory.

    Two files alike in both are called the same; among a million different ones the odds of one such pair are below 1%.
    """
    if index is not None:
        rows = np.flatnonzero(index.byte_lengths > 0)
        lengths, checksums = index.byte_lengths[rows], index.checksums[rows]
    elif isinstance(images, ArrayImages):
        rows = np.arange(len(images))
        lengths = np.zeros(len(images), np.int64)
        checksums = np.fromiter((zlib.crc32(image) for image in images.images), np.uint32, len(images))
    else:
        raise ValueError("neither files nor an array")
    return Prints(rows, (lengths.astype(np.uint64) << np.uint64(32)) | checksums.astype(np.uint64))


def repeated(of: Prints) -> list[np.ndarray]:
    """The rows of each content that several images have, int64 (2 or more,) each."""
    order = np.argsort(of.contents, kind="stable")
    contents = of.contents[order]
    starts = np.flatnonzero(np.r_[True, contents[1:] != contents[:-1]]) if len(contents) else np.zeros(0, np.int64)
    ends = np.r_[starts[1:], len(contents)] if len(contents) else starts
    several = ends - starts > 1
    return [of.rows[order[start:end]] for start, end in zip(starts[several].tolist(), ends[several].tolist())]


def shared(one: Prints, other: Prints) -> Iterator[tuple[int, int]]:
    """(row of one set, row of another) for each image of the other whose content the first has too."""
    contents, first = np.unique(one.contents, return_index=True)
    if not len(contents):
        return
    place = np.minimum(np.searchsorted(contents, other.contents), len(contents) - 1)
    for theirs in np.flatnonzero(contents[place] == other.contents).tolist():
        yield int(one.rows[first[place[theirs]]]), int(other.rows[theirs])


class Balance(NamedTuple):
    """(class name, images) of the class with the fewest, of one in the middle and of the one with the most."""

    fewest: tuple[str, int]
    median: tuple[str, int]
    most: tuple[str, int]


def balance(images: ImageSet) -> Balance | None:
    """How many images the classes of a set have; None where nothing is labelled."""
    labelled = images.labels[images.labels >= 0]
    if not len(labelled):
        return None
    counts = np.bincount(labelled, minlength=len(images.classes))
    order = np.argsort(counts, kind="stable")
    chosen = (order[0], order[(len(order) - 1) // 2], order[-1])
    return Balance(*((images.classes[label], int(counts[label])) for label in chosen))


def classes_apart(train: ImageSet, val: ImageSet) -> tuple[list[str], list[str]]:
    """Names of classes that have images in the train set alone, and in the val set alone."""
    ours, theirs = (
        {images.classes[label] for label in np.unique(images.labels[images.labels >= 0])} for images in (train, val)
    )
    return sorted(ours - theirs), sorted(theirs - ours)
