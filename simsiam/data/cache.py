"""Where what is made once is kept between runs: drawn sets, indexes of folders, downloaded lists."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$SIMSIAM_CACHE`, or `~/.cache/simsiam`; it need not exist."""
    return Path(os.environ.get("SIMSIAM_CACHE") or "~/.cache/simsiam").expanduser()
