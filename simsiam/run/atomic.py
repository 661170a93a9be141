"""Files that a reader sees whole, old or new."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file in one move, so that a reader sees the old or the new one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
