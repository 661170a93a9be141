"""Where what is made once is kept between runs: drawn sets, indexes of folders, downloaded lists."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from simsiam.atomic import replacing


def cache_root() -> Path:
    """`$SIMSIAM_CACHE`, or `~/.cache/simsiam`; it need not exist."""
    return Path(os.environ.get("SIMSIAM_CACHE") or "~/.cache/simsiam").expanduser()


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Puts the file that `write` makes, at the path it is given, at `path` in the cache, whole or not at all.

    A cache that cannot be written costs the next run what this one has just made, and this one nothing.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            write(draft)
