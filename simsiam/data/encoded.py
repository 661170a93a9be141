"""Images that are encoded files, wherever the bytes lie: what folders and shards have in common."""

import copy
import zlib

import numpy as np
import torch

from simsiam.data.decode import decode
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index


class EncodedImages:
    """An `ImageSet` of encoded files. A subclass says where the bytes are by `_stored`.

    Args:
        index: what there is.
        verify: compare each file that is read with the index's checksum; a file that differs counts as unreadable.
    """

    def __init__(self, index: Index, verify: bool = False) -> None:
        if verify and index.checksums is None:
            raise ValueError("there are no checksums to verify")
        self.index, self.verify = index, verify
        self.labels, self.classes = index.labels, index.classes

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, sample: int) -> str:
        """The path of a sample relative to the root, with `/` between folders."""
        return self.index.names[sample]

    def read_bytes(self, sample: int) -> bytes:
        """The encoded image. Raises `BadImage` where it cannot be read or is not what the index holds."""
        data = self._stored(sample)
        if self.verify and zlib.crc32(data) != self.index.checksums[sample]:
            raise BadImage("its checksum is not the index's: the file has been damaged or changed")
        return data

    def read(self, sample: int) -> torch.Tensor:
        """The whole image, uint8 (3, H, W) RGB. Raises `BadImage` where it cannot be read or decoded."""
        return decode(self.read_bytes(sample))

    def take(self, samples: np.ndarray) -> "EncodedImages":
        """The set of some images, int64 (n,), in their order, with the same classes."""
        taken = copy.copy(self)
        taken.index = self.index.take(samples)
        taken.labels = taken.index.labels
        return taken

    def _stored(self, sample: int) -> bytes:
        raise NotImplementedError
