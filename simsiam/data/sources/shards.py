"""Images in uncompressed tar files, read at their offsets: a folder of shards on disk or behind a URL."""

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index, read_index
from simsiam.data.storage import MOST_IMAGE_BYTES, is_inside, open_storage, patiently, reason
from simsiam.errors import UserError

INDEX = "index.npz"


def shard_name(number: int) -> str:
    """File name of a shard, from 0."""
    return f"shard-{number:06d}.tar"


class ShardImages(EncodedImages):
    """The images of a folder that `simsiam shards` has packed, as an `ImageSet` in the order they were packed in.

    It may be used by several threads, after a fork, and pickled.

    Args:
        root: the folder, or a URL such as s3://bucket/train.
        classes: class names whose numbers to use, those of the train split for its val split, matched by name.
        index: what `read_shard_index` read earlier; by default it is read.
        verify: as in `EncodedImages`.

    Raises:
        UserError: no index there, or a damaged one; a class that `classes` lacks; a URL whose package is missing.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str] | None = None,
        *,
        index: Index | None = None,
        verify: bool = False,
    ) -> None:
        self._storage = open_storage(str(root))
        if index is None:
            index, _ = read_shard_index(self.root)
        super().__init__(index.numbered_by(classes, self.root), verify)

    @property
    def root(self) -> str:
        """The folder or URL, without a slash at its end."""
        return self._storage.root

    def _stored(self, sample: int) -> bytes:
        index = self.index
        name, start = index.shard_names[index.shards[sample]], int(index.offsets[sample])
        length = int(index.byte_lengths[sample])
        if not length:
            return b""  # no request can ask for nothing
        try:
            data = patiently(lambda: self._storage.read_range(name, start, length))
        except OSError as error:
            raise BadImage(f"{name}: {reason(error)}") from error
        if len(data) < length:
            raise BadImage(f"{name} is cut short: {len(data):,} of {length:,} bytes are there from {start:,} on")
        return data


def read_shard_index(root: str) -> tuple[Index, dict[str, np.ndarray]]:
    """The index of a folder of shards, and what the packer kept beside it. Raises UserError as `ShardImages`."""
    storage = open_storage(root)
    try:
        data = patiently(lambda: storage.read(INDEX))
    except FileNotFoundError:
        raise UserError(
            f"{root} holds no {INDEX}, so it is no set of shards or not a whole one; pack a folder of images into it "
            "with `simsiam shards`, or run that command again where it was interrupted"
        ) from None
    except OSError as error:
        raise UserError(f"{root}/{INDEX} cannot be read ({reason(error)}); check the place and your access") from error
    try:
        _refuse_compressed(data)
        index, more = read_index(io.BytesIO(data))
        _check(index)
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged data
        raise UserError(
            f"{root}/{INDEX} cannot be understood ({error}); remove it and pack the images again with `simsiam shards`"
        ) from error
    return index, more


def _refuse_compressed(data: bytes) -> None:
    """Numpy writes an index as it is; a compressed one could unfold to any size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("it is compressed")


def _check(index: Index) -> None:
    """That it names files beside itself, and bytes that there may be. Raises ValueError."""
    count, columns = len(index.names), (index.shards, index.offsets, index.byte_lengths)
    if any(column is None or column.shape != (count,) or column.dtype.kind != "i" for column in columns):
        raise ValueError("it is no index of shards")
    if index.labels.shape != (count,) or index.labels.dtype.kind != "i":
        raise ValueError("it has not one label for each image")
    ends = index.names.ends
    if ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] != len(index.names.blob):
        raise ValueError("it has not one name for each image")
    for name in index.shard_names:
        if not isinstance(name, str) or "/" in name or not is_inside(name):
            raise ValueError(f"it names {str(name)[:100]!r}, which is no file beside it")
    limits = (
        (index.shards, 0, len(index.shard_names) - 1),
        (index.offsets, 0, 1 << 62),
        (index.byte_lengths, 0, MOST_IMAGE_BYTES),
        (index.labels, -1, len(index.classes) - 1),
    )
    for column, least, most in limits:
        if count and not least <= int(column.min()) <= int(column.max()) <= most:
            raise ValueError("it has numbers out of their range")
