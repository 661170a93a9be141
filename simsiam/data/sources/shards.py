"""Images in uncompressed tar files, read at their offsets: a folder of shards on disk or behind a URL."""

import io
from collections.abc import Sequence

import numpy as np

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index, read_index
from simsiam.data.storage import open_storage, patiently, reason
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
            "with `simsiam shards`, or run that command again where it was interrupted."
        ) from None
    except OSError as error:
        raise UserError(f"{root}/{INDEX} cannot be read ({reason(error)}); check the place and your access.") from error
    try:
        index, more = read_index(io.BytesIO(data))
        if index.shards is None:
            raise ValueError("it is no index of shards")
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged data
        raise UserError(
            f"{root}/{INDEX} cannot be understood ({error}); remove it and pack the images again with `simsiam shards`."
        ) from error
    return index, more
