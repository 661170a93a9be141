"""Files that a reader sees whole, old or new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write, which takes the place of a file in one move; a link's own, and not that of what it names.

    Raises OSError where it cannot be written. After that, or any other error, the old file is there and the draft not.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield draft
        descriptor = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # or a power cut after the move could leave the name without the bytes
        finally:
            os.close(descriptor)
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file by `content` as `replacing` does. Raises OSError where it cannot be written."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
