"""Indexes of folders, kept between runs: listing 1.28 million files again takes minutes on a network file system."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from simsiam.data.cache import cache_root, keep
from simsiam.data.index import FACTS, Index, Strings, read_index, write_index
from simsiam.data.sources.folder import Scan, scan

_SETTLED_NS = 2_000_000_000
"""A folder that changed less than this ago may change again within the same tick of its clock, unnoticed."""


def folder_index(root: Path) -> Index:
    """The index of a folder: from the cache, or made now and kept there.

    A file that came, went or was renamed since is noticed by the time stamps of the folders, which are all that is
    looked at; one that was overwritten in place only by its checksum. Errors as in `FolderImages`.
    """
    kept = _read(root)
    if kept is not None and _unchanged(root, kept):
        return kept.index
    began = time.time_ns()
    found = scan(root)
    if kept is not None:
        found = found._replace(index=_carry_over(kept.index, found.index))
    if found.changed_ns.max() < began - _SETTLED_NS:
        _write(root, found)
    return found.index


def keep_facts(root: Path, index: Index) -> None:
    """Keeps what was learnt by reading the files of a folder, where its cached index still lists the same files."""
    kept = _read(root)
    if kept is not None and np.array_equal(kept.index.names.blob, index.names.blob) and len(kept.index) == len(index):
        _write(root, kept._replace(index=replace(kept.index, **{name: getattr(index, name) for name in FACTS})))


def _path(root: Path) -> Path:
    return cache_root() / "indexes" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"


def _read(root: Path) -> Scan | None:
    try:
        index, more = read_index(_path(root))
        return Scan(index, Strings(more["folders.blob"], more["folders.ends"]), more["changed_ns"])
    except Exception:  # none, of another version, or damaged, which raises nearly anything: it is made anew
        return None


def _unchanged(root: Path, kept: Scan) -> bool:
    try:
        now = [os.stat(os.path.join(root, kept.folders[row])).st_mtime_ns for row in range(len(kept.folders))]
    except OSError:
        return False
    return bool(np.array_equal(now, kept.changed_ns))


def _carry_over(old: Index, new: Index) -> Index:
    """The new index with what the old one knew of the files of the same name."""
    if old.byte_lengths is None:
        return new
    row_of = {name: row for row, name in enumerate(old.names)}
    rows = np.array([row_of.get(name, -1) for name in new.names])
    facts = {name: getattr(old, name)[rows] for name in FACTS}
    for values in facts.values():
        values[rows < 0] = 0
    facts["byte_lengths"][rows < 0] = -1
    return replace(new, **facts)


def _write(root: Path, found: Scan) -> None:
    def write(draft: Path) -> None:
        folders = {"folders.blob": found.folders.blob, "folders.ends": found.folders.ends}
        with draft.open("wb") as file:  # numpy would add its own ending to a name
            write_index(file, found.index, **folders, changed_ns=found.changed_ns)

    keep(_path(root), write)
