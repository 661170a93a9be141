"""Encoded images -> uncompressed tar shards in WebDataset's layout, with an index that says where each image lies."""

import hashlib
import io
import json
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from simsiam.data.counter import permutation
from simsiam.data.decode import image_size
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index, as_array, from_array, write_index
from simsiam.data.sources.shards import INDEX, read_shard_index, shard_name
from simsiam.data.storage import Storage, open_storage, reason
from simsiam.errors import UserError

DEFAULT_SHARD_BYTES = 256 << 20
_LAYOUT = 1  # of shards and parts: raise it whenever a byte of them changes
_SHUFFLE = 0x5A4D  # names the stream of hashes that orders the shards
_READ_AHEAD = 4  # files per thread that wait to be written


class Packed(NamedTuple):
    """What a folder of shards holds.

    Attributes:
        left_out: (name, reason) of the images that could not be read, in the order of packing.
        was_there: whether it had been packed before, so that nothing was done.
    """

    index: Index
    left_out: list[tuple[str, str]]
    was_there: bool


class Packing:
    """A set that is being packed: image by image in a fixed order, a shard whenever another image would not fit.

    Member `000000123.jpg` is sample 123 of the index, and `000000123.cls` its class number, absent where it has none.
    What cannot be read is left out; what cannot be decoded is packed as it is. Beside each shard lies its part of the
    index until all are there, so that an interrupted packing goes on after the last whole shard and ends in the same
    bytes. The index comes last: a folder with an index is complete.

    Args:
        images: what to pack.
        out: a folder or a URL that fsspec knows.
        shard_bytes: most bytes of members in a shard, unless it is one larger image; the archive's end takes up to 10
            KiB more.
        seed: of the order, a permutation; None keeps that of the sample ids.

    Raises:
        UserError: `out` cannot be read, or holds shards that this packing would not make; a nonsensical number.
    """

    def __init__(
        self, images: EncodedImages, out: str, *, shard_bytes: int = DEFAULT_SHARD_BYTES, seed: int | None = 0
    ) -> None:
        if shard_bytes < 1:
            raise UserError(f"--shard-bytes {shard_bytes} is no size of a shard; take {DEFAULT_SHARD_BYTES}")
        if seed is not None and not 0 <= seed < 2**63:
            raise UserError(f"--seed {seed} is not a number from 0 to 2**63 - 1; take 0")
        self._images, self._storage = images, open_storage(out)
        self._shard_bytes, self._seed = shard_bytes, seed
        self._recipe = {
            "source": np.frombuffer(_digest(images.index), np.uint8),
            "options": np.array([shard_bytes, seed is not None, seed or 0], np.int64),
        }
        try:
            self._names = set(self._storage.names())
            self._complete = self._read_complete()
            self._parts = [] if self._complete else list(self._read_parts())
        except OSError as error:
            raise UserError(f"{self.out} cannot be read ({reason(error)}); check the place and your access") from error

    @property
    def out(self) -> str:
        """The folder or URL, without a slash at its end."""
        return self._storage.root

    def run(self, workers: int = 8, *, show_progress: bool = False) -> Packed:
        """Packs what is not packed yet.

        Args:
            workers: threads that read files; they change nothing in the shards.

        Raises:
            UserError: `out` cannot be written, or none of the images can be read.
        """
        if workers < 1:
            raise UserError(f"--workers {workers} reads no files; take 1 or more")
        try:
            packed = self._complete or self._finish(self._write_shards(workers, show_progress))
            for number in range(len(packed.index.shard_names)):
                if _part_name(number) in self._names:
                    self._storage.remove(_part_name(number))
            return packed
        except OSError as error:
            raise UserError(
                f"{self.out} cannot be written ({reason(error)}); mend that and give the same command again, which "
                "goes on after the shards that are whole"
            ) from error

    def _write_shards(self, workers: int, show_progress: bool) -> list[tuple[int, str]]:
        """Writes the shards that are missing, and their parts; what was left out after the last one."""
        total, start = len(self._images), self._parts[-1].stop if self._parts else 0
        order = np.arange(total) if self._seed is None else permutation(total, self._seed, _SHUFFLE)
        left_out: list[tuple[int, str]] = []
        first_row = sum(len(part.samples) for part in self._parts)
        with (
            tqdm(
                total=total, initial=start, desc=self.out, unit=" images", disable=None if show_progress else True
            ) as bar,
            closing(_readable(self._images, order, start, workers, left_out, bar)) as files,
        ):
            waiting = next(files, None)
            while waiting is not None:
                name = shard_name(len(self._parts))
                with self._storage.writing(name) as file:
                    members, waiting = self._write_shard(file, first_row, waiting, files)
                part = _Part.of(members, waiting.position if waiting else total, left_out)
                left_out.clear()
                with self._storage.writing(_part_name(len(self._parts))) as file:
                    part.write(file, self._recipe)
                self._parts.append(part)
                self._names.add(_part_name(len(self._parts) - 1))
                first_row += len(members)
        if not self._parts:
            raise UserError(
                f"None of the {total:,} images can be read, such as {self._images.name(left_out[0][0])} "
                f"({left_out[0][1]}); see `simsiam check-data`"
            )
        return left_out

    def _write_shard(
        self, file: IO[bytes], first_row: int, waiting: "_File | None", files: Iterator["_File"]
    ) -> tuple[list["_Member"], "_File | None"]:
        """Fills a shard from the file that waits on; what it holds, and the file that did not fit."""
        members: list[_Member] = []
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            while waiting is not None:
                label = int(self._images.labels[waiting.sample])
                needed = _stored_bytes(len(waiting.data)) + (_stored_bytes(len(str(label))) if label >= 0 else 0)
                if members and archive.offset + needed > self._shard_bytes:
                    break
                stem, name = f"{first_row + len(members):09d}", self._images.name(waiting.sample)
                offset = _add(archive, f"{stem}.{name.rpartition('.')[2].lower()}", waiting.data)
                if label >= 0:
                    _add(archive, f"{stem}.cls", str(label).encode())
                members.append(
                    _Member(waiting.sample, offset, len(waiting.data), waiting.pixels, zlib.crc32(waiting.data))
                )
                waiting = next(files, None)
        return members, waiting

    def _finish(self, left_out_last: list[tuple[int, str]]) -> Packed:
        """Writes the index."""
        parts = self._parts
        samples = np.concatenate([part.samples for part in parts])
        index = replace(
            self._images.index.take(samples),
            byte_lengths=np.concatenate([part.byte_lengths for part in parts]),
            pixels=np.concatenate([part.pixels for part in parts]),
            checksums=np.concatenate([part.checksums for part in parts]),
            shards=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.samples) for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            shard_names=tuple(map(shard_name, range(len(parts)))),
        )
        left_out = chain(*(part.left_out for part in parts), left_out_last)
        named = [(self._images.name(sample), why) for sample, why in left_out]
        with self._storage.writing(INDEX) as file:
            write_index(file, index, **self._recipe, left_out=as_array(named))
        return Packed(index, named, was_there=False)

    def _read_complete(self) -> Packed | None:
        """What is there if it is complete and the same; refuses what is complete and another."""
        if INDEX not in self._names:
            return None
        index, more = read_shard_index(self.out)
        self._refuse_other(more, "is complete", "give another folder, or remove what is there to pack it anew")
        missing = sorted(set(index.shard_names) - self._names)
        if missing:
            raise UserError(
                f"{self.out} lacks {len(missing):,} shards of its index, such as {missing[0]}; restore them, or remove "
                "what is there to pack it anew"
            )
        return Packed(index, [(name, why) for name, why in from_array(more["left_out"])], was_there=True)

    def _read_parts(self) -> Iterator["_Part"]:
        """The parts of the shards that are whole, from the first on; refuses what would be lost."""
        number = 0
        while {_part_name(number), shard_name(number)} <= self._names:
            part, recipe = _Part.read(self._storage, _part_name(number))
            self._refuse_other(
                recipe, "was interrupted", "end it with the command that began it, or remove what is there"
            )
            yield part
            number += 1
        # The next shard may have come without its part, if that was the moment of interruption.
        known = {shard_name(number), *(f"{name.removesuffix('.npz')}.tar" for name in self._names)}
        strays = sorted(name for name in self._names if name.endswith(".tar") and name not in known)
        if strays:
            raise UserError(
                f"{self.out} holds {len(strays):,} tar files of another origin, such as {strays[0]}; give another "
                "folder, or remove them"
            )

    def _refuse_other(self, theirs: dict[str, np.ndarray], state: str, remedy: str) -> None:
        if "source" not in theirs or not np.array_equal(theirs["source"], self._recipe["source"]):
            raise UserError(f"{self.out} holds the packing of another list of images, which {state}; {remedy}")
        if not np.array_equal(theirs["options"], self._recipe["options"]):
            shard_bytes, shuffled, seed = theirs["options"].tolist()
            order = f"--shuffle --seed {seed}" if shuffled else "--no-shuffle"
            raise UserError(
                f"{self.out} holds a packing with --shard-bytes {shard_bytes} {order}, which {state}; {remedy}"
            )


class _File(NamedTuple):
    """A file that has been read, at a position in the order of packing."""

    position: int
    sample: int
    data: bytes
    pixels: tuple[int, int]


class _Member(NamedTuple):
    """An image in a shard."""

    sample: int
    offset: int
    byte_length: int
    pixels: tuple[int, int]
    checksum: int


class _Part(NamedTuple):
    """What the index will say of one shard.

    Attributes:
        samples: sample ids in the set that is packed, int64 (n,). The next four are as in `Index`, for these.
        stop: the position in the order of packing from which the next shard goes on.
        left_out: (sample id, reason) of what could not be read on the way there.
    """

    samples: np.ndarray
    offsets: np.ndarray
    byte_lengths: np.ndarray
    pixels: np.ndarray
    checksums: np.ndarray
    stop: int
    left_out: list[tuple[int, str]]

    @classmethod
    def of(cls, members: list[_Member], stop: int, left_out: list[tuple[int, str]]) -> "_Part":
        types = np.int64, np.int64, np.int64, np.int32, np.uint32
        return cls(*(np.array(column, kind) for column, kind in zip(zip(*members), types)), stop, list(left_out))

    def write(self, file: IO[bytes], recipe: dict[str, np.ndarray]) -> None:
        arrays = {**self._asdict(), "left_out": as_array(self.left_out)}
        np.savez(file, **arrays, **recipe)

    @classmethod
    def read(cls, storage: Storage, name: str) -> tuple["_Part", dict[str, np.ndarray]]:
        """A part, and the recipe of its packing."""
        data = storage.read(name)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = {field: stored[field] for field in stored.files}
            left_out = [(sample, why) for sample, why in from_array(arrays.pop("left_out"))]
            recipe = {key: arrays.pop(key) for key in ("source", "options")}
            return cls(**{**arrays, "stop": int(arrays["stop"]), "left_out": left_out}), recipe
        except Exception as error:  # zipfile and numpy raise nearly anything on damaged data
            raise UserError(
                f"{storage.root}/{name} cannot be understood ({error}); remove it and give the same command again"
            ) from error


def _readable(
    images: EncodedImages, order: np.ndarray, start: int, workers: int, left_out: list[tuple[int, str]], bar: tqdm
) -> Iterator[_File]:
    """The files at the positions from `start` on, in order, read ahead by threads; adds the others to `left_out`."""

    def read(position: int) -> _File | tuple[int, str]:
        sample = int(order[position])
        try:
            data = images.read_bytes(sample)
        except BadImage as error:
            return sample, str(error)
        return _File(position, sample, data, image_size(data) or (0, 0))

    positions = iter(range(start, len(order)))
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(read, position) for position in islice(positions, workers * _READ_AHEAD))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(pool.submit(read, position) for position in islice(positions, 1))
            bar.update()
            if isinstance(found, _File):
                yield found
            else:
                left_out.append(found)


def _part_name(number: int) -> str:
    return f"shard-{number:06d}.npz"


def _stored_bytes(length: int) -> int:
    """What a member of some bytes takes in a tar file, its header included."""
    return tarfile.BLOCKSIZE * (1 - -length // tarfile.BLOCKSIZE)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member; where its first byte lies in the archive."""
    member = tarfile.TarInfo(name)  # of nobody, at no time, mode 0644: equal images give equal shards
    member.size = len(data)
    offset = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(member, io.BytesIO(data))
    return offset


def _digest(index: Index) -> bytes:
    """Of all that the shards follow from but the files themselves: their names, labels and classes."""
    digest = hashlib.sha256(json.dumps([_LAYOUT, index.classes]).encode())
    for array in (index.names.blob, index.names.ends, index.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
