"""torch.distributed.checkpoint's reader, which runs nothing that a file says."""

from typing import Any

from torch.distributed.checkpoint import FileSystemReader, Metadata

from simsiam.checkpoint.metadata import read_metadata


class CheckedReader(FileSystemReader):
    """Reads `.metadata`, a pickle, by a table of the classes that belong there; tensors are `weights_only` by DCP."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return read_metadata(self.path / ".metadata")
