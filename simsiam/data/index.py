"""What a set of encoded images holds, as a few flat arrays: neither forked workers nor ranks copy a list of paths."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import IO, Any

import numpy as np

from simsiam.errors import UserError


class Strings:
    """An immutable list of strings in two numpy arrays.

    Python strings would be copied into every forked worker as their reference counts change.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends  # uint8 (bytes,), int64 (N + 1,)

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Strings":
        strings = list(strings)
        joined = "".join(strings)
        encoded = strings if joined.isascii() else [os.fsencode(string) for string in strings]
        blob = joined.encode("ascii") if encoded is strings else b"".join(encoded)
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(blob, dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self.blob[self.ends[index] : self.ends[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        """All of them, three times as fast as one by one."""
        blob = self.blob.tobytes()
        return (os.fsdecode(blob[start:end]) for start, end in pairwise(self.ends.tolist()))

    def take(self, rows: np.ndarray) -> "Strings":
        """The strings of some rows, int64 (n,), in their order."""
        starts, lengths = self.ends[rows], np.diff(self.ends)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
        return Strings(self.blob[places], ends)


FACTS = ("byte_lengths", "pixels", "checksums")
"""What an index knows of images only when they have been read."""


@dataclass(frozen=True)
class Index:
    """The images of a set, in the order of their sample ids.

    Attributes:
        names: path of each image relative to the set's root, with `/` between folders.
        labels: int64 (N,), class numbers into `classes`, -1 for an unlabelled image.
        classes: class names in the order of their numbers; empty where nothing is labelled.
        byte_lengths: int64 (N,), size of each encoded image, -1 where it is not known. This and the next two are None
            before anyone has read the files: asking a file system for a million sizes takes longer than listing them.
        pixels: int32 (N, 2), height and width, (0, 0) where no header could be read.
        checksums: uint32 (N,), zlib.crc32 of each encoded image.
        shards, offsets: int32 and int64 (N,), which of `shard_names` an image lies in and its first byte there; None in
            a folder.
        shard_names: file names of the shards.
    """

    names: Strings
    labels: np.ndarray
    classes: tuple[str, ...]
    byte_lengths: np.ndarray | None = None
    pixels: np.ndarray | None = None
    checksums: np.ndarray | None = None
    shards: np.ndarray | None = None
    offsets: np.ndarray | None = None
    shard_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def is_read(self) -> np.ndarray:
        """Of which images the `FACTS` are known, bool (N,)."""
        return np.zeros(len(self), bool) if self.byte_lengths is None else self.byte_lengths >= 0

    def unread(self) -> np.ndarray:
        """Rows, int64 (n,), of images whose `FACTS` are not known."""
        return np.flatnonzero(~self.is_read())

    def take(self, rows: np.ndarray) -> "Index":
        """The images of some rows, int64 (n,), in their order, with the same classes."""
        taken = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in taken.items():
            if isinstance(value, np.ndarray):
                taken[name] = value[rows]
        return Index(**{**taken, "names": self.names.take(rows)})

    def numbered_by(self, classes: Sequence[str] | None, place: str) -> "Index":
        """The same images with the class numbers of another split, matched by name; `place` names the set in an error.

        Raises UserError for a class that `classes` lacks.
        """
        if not classes or not self.classes or tuple(classes) == self.classes:
            return self
        number = {name: label for label, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in number]
        if unknown:
            raise UserError(
                f"The class folder {place}/{unknown[0]} has no counterpart among the {len(classes)} classes of the "
                "train split; remove it, rename it or add the class there"
            )
        table = np.array([*(number[name] for name in self.classes), -1], np.int64)  # the last is that of -1
        return replace(self, labels=table[self.labels], classes=tuple(classes))


_VERSION = 1


def write_index(file: str | os.PathLike[str] | IO[bytes], index: Index, **more: np.ndarray) -> None:
    """Writes an index, with more arrays beside it, as an uncompressed .npz."""
    arrays: dict[str, Any] = {"version": np.int64(_VERSION), **more}
    for f in fields(index):
        value = getattr(index, f.name)
        if isinstance(value, Strings):
            arrays[f"{f.name}.blob"], arrays[f"{f.name}.ends"] = value.blob, value.ends
        elif isinstance(value, tuple):
            arrays[f.name] = as_array(value)
        elif value is not None:
            arrays[f.name] = value
    np.savez(file, allow_pickle=False, **arrays)


def read_index(file: str | os.PathLike[str] | IO[bytes]) -> tuple[Index, dict[str, np.ndarray]]:
    """What `write_index` wrote: the index, and the arrays beside it.

    Raises ValueError for an index of another version, and nearly any Exception for a damaged one (zipfile's are many).
    """
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if arrays.pop("version") != _VERSION:
        raise ValueError("it is of another version")
    names = Strings(arrays.pop("names.blob"), arrays.pop("names.ends"))
    tuples = {name: tuple(from_array(arrays.pop(name))) for name in ("classes", "shard_names")}
    plain = {f.name: arrays.pop(f.name) for f in fields(Index) if f.name in arrays}
    return Index(names=names, **tuples, **plain), arrays


def as_array(value: list | tuple) -> np.ndarray:
    """Strings and numbers as uint8 that a .npz can hold: their JSON."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: np.ndarray) -> list:
    """What `as_array` was given, as a list."""
    return json.loads(array.tobytes())
