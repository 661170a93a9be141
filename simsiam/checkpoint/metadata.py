"""`.metadata` of torch.distributed.checkpoint: a pickle, which torch reads without limits and this does not.

The file says which tensors there are and where their bytes lie. What it may name is a table, what it holds is checked
piece by piece, and DCP's own classes are made only then, of numbers and strings.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from simsiam.errors import UserError
from simsiam.unpickle import Foreign, Inert, TableUnpickler

_MOST_BYTES = 8 << 20  # 38,000 tensors; a file of nothing but empty lists then takes half a gigabyte
_MOST_SIDES = 16
_DCP = "torch.distributed.checkpoint"


class _Metadata(Inert):
    pass


class _Tensor(Inert):
    pass


class _Bytes(Inert):
    pass


class _Properties(Inert):
    pass


class _Chunk(Inert):
    pass


class _Index(Inert):
    pass


class _Info(Inert):
    pass


class _Size(Inert):
    pass


_TABLE: dict[tuple[str, str], Any] = {
    (f"{_DCP}.metadata", "Metadata"): _Metadata,
    (f"{_DCP}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_DCP}.metadata", "BytesStorageMetadata"): _Bytes,
    (f"{_DCP}.metadata", "TensorProperties"): _Properties,
    (f"{_DCP}.metadata", "ChunkStorageMetadata"): _Chunk,
    (f"{_DCP}.metadata", "MetadataIndex"): _Index,
    (f"{_DCP}.metadata", "StorageMeta"): Inert,
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): Inert,
    (f"{_DCP}.filesystem", "_StorageInfo"): _Info,
    ("torch", "Size"): _Size,
    ("torch.serialization", "_get_layout"): Inert,
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    # Where the checkpoint was written: Windows and other versions of Python have their paths elsewhere.
    **{
        (module, f"{pure}{system}Path"): Inert
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    },
}


def read_metadata(path: Path) -> Metadata:
    """What a checkpoint's `.metadata` says, read without running anything.

    Raises UserError where it is damaged or names what does not belong there, has entries that are not tensors (which
    DCP would unpickle), or says that their bytes lie anywhere but in whole files beside it.
    """
    try:
        if path.is_symlink() or path.parent.is_symlink() or path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is a link, or has more than {_MOST_BYTES:,} bytes")
        metadata = _metadata(TableUnpickler(path.read_bytes(), _TABLE).load())
        _check_files(path.parent, metadata)
    except Foreign as error:
        raise UserError(
            f"{path} names {error}, which does not belong there and could run code; take another checkpoint"
        ) from None
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be used ({reason}); take another checkpoint") from None
    return metadata


def _metadata(read: Any) -> Metadata:
    told = _state(read, _Metadata)
    entries = {_text(name): _tensor(name, entry) for name, entry in _mapping(told["state_dict_metadata"])}
    storage = dict(_stored(index, info) for index, info in _mapping(told["storage_data"]))
    _check_bytes(entries, storage)
    # Where in a nested state each tensor belongs.
    places = {_text(name): tuple(_key(key) for key in keys) for name, keys in _mapping(told.get("planner_data") or {})}
    return Metadata(entries, planner_data=places, storage_data=storage, storage_meta=StorageMeta())


def _tensor(name: str, read: Any) -> TensorStorageMetadata:
    if not isinstance(read, _Tensor):
        raise ValueError(f"{str(name)[:100]} is no tensor")
    told = _state(read, _Tensor)
    dtype = _properties(told["properties"])
    chunks = [_state(chunk, _Chunk) for chunk in told["chunks"]]
    size = _size(told["size"])
    if len(chunks) > max(1, math.prod(size)):
        raise ValueError(f"{str(name)[:100]} has more pieces than numbers")
    return TensorStorageMetadata(
        TensorProperties(dtype),
        size,
        [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _properties(read: Any) -> torch.dtype:
    """Of the five properties that which counts; DCP calls the others deprecated."""
    if not isinstance(read, _Properties) or not isinstance(read.state[0], torch.dtype):
        raise ValueError("a tensor has no type")
    return read.state[0]


def _stored(read: Any, info: Any) -> tuple[MetadataIndex, _StorageInfo]:
    index, told = _state(read, _Index), _state(info, _Info)
    file, offset, length = told["relative_path"], _count(told["offset"]), _count(told["length"])
    if told.get("transform_descriptors"):
        raise ValueError("its tensors are compressed or encrypted, which this program's are not")
    if not isinstance(file, str) or file in ("", ".", "..") or any(sign in file for sign in "/\\:\0"):
        raise ValueError(f"it names {str(file)[:100]!r}, which is no file beside it")
    place = index.get("offset")
    hint = index.get("index")
    return (
        MetadataIndex(
            _text(index["fqn"]), None if place is None else _size(place), None if hint is None else _count(hint)
        ),
        _StorageInfo(file, offset, length),
    )


def _check_bytes(entries: dict[str, TensorStorageMetadata], storage: dict[MetadataIndex, _StorageInfo]) -> None:
    """Every piece of a tensor has bytes enough: a file of a kilobyte cannot ask for memory for a terabyte."""
    pieces = 0
    for name, entry in entries.items():
        held = 0
        for chunk in entry.chunks:
            fits = len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
            info = storage.get(MetadataIndex(name, chunk.offsets))
            size = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
            inside = (o + s <= whole for o, s, whole in zip(chunk.offsets, chunk.sizes, entry.size))
            if not fits or not all(inside) or info is None or info.length < size:
                raise ValueError(f"a piece of {name[:100]} is not where it says")
            held += math.prod(chunk.sizes)
        pieces += len(entry.chunks)
        if held != math.prod(entry.size):
            raise ValueError(f"{name[:100]} is not all there")
    if pieces != len(storage):
        raise ValueError("its list of tensors and its list of bytes do not agree")


def _check_files(folder: Path, metadata: Metadata) -> None:
    ends: dict[str, int] = {}
    for info in metadata.storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise ValueError(f"its file {name[:100]} is a link or not there")
        if file.stat().st_size < end:
            raise ValueError(f"its file {name[:100]} is cut short")


def _state(read: Any, kind: type[Inert]) -> dict[str, Any]:
    if not isinstance(read, kind) or not isinstance(read.state, dict):
        raise ValueError(f"it has no {kind.__name__.removeprefix('_').lower()} where one belongs")
    return read.state


def _mapping(read: Any) -> Any:
    if not isinstance(read, dict):
        raise ValueError("it has no mapping where one belongs")
    return read.items()


def _size(read: Any) -> torch.Size:
    (sides,) = read.given if isinstance(read, _Size) else (read,)
    if not isinstance(sides, tuple | list) or len(sides) > _MOST_SIDES:
        raise ValueError("a tensor has no shape")
    return torch.Size([_count(side) for side in sides])


def _count(read: Any) -> int:
    if type(read) is not int or not 0 <= read < 1 << 62:
        raise ValueError("it has no number where one belongs")
    return read


def _text(read: Any) -> str:
    if type(read) is not str:
        raise ValueError("it has no name where one belongs")
    return read


def _key(read: Any) -> str | int:
    return read if type(read) is int else _text(read)
