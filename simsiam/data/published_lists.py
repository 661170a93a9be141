"""The SimCLR lists of 1 and 10 % of ImageNet's training images, fetched on first use and never trusted unchecked."""

import hashlib
import http.client
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from simsiam.data.cache import cache_root, keep
from simsiam.errors import UserError

_TIMEOUT_SECONDS = 30.0  # torch.hub's download has none, and a cluster's firewall may answer nothing at all


class Published(NamedTuple):
    """Where a list is published, and the SHA-256 of its bytes."""

    url: str
    sha256: str


_FOLDER = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets"
PUBLISHED = {
    "1pct": Published(f"{_FOLDER}/1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"),
    "10pct": Published(f"{_FOLDER}/10percent.txt", "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"),
}


def published_list(name: str) -> tuple[Path, bytes]:
    """A list of `PUBLISHED` with its place in the cache; its bytes are checked at every reading.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or what comes is not the published list.
    """
    url, sha256 = PUBLISHED[name]
    path = cache_root() / "subsets" / url.rpartition("/")[2]
    with suppress(OSError):
        kept = path.read_bytes()
        if _sha256(kept) == sha256:
            return path, kept
    by_hand = f"download it on another machine and put it at {path}"
    if path.exists():
        by_hand += " in place of the file there, which is not the published one"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            fetched = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"The list --subset {name} cannot be fetched from {url} ({error}); {by_hand}") from error
    if _sha256(fetched) != sha256:
        raise UserError(
            f"What {url} sends is not the published list for --subset {name}: its SHA-256 is {_sha256(fetched)}, not "
            f"{sha256}; {by_hand}"
        )
    keep(path, lambda draft: draft.write_bytes(fetched))
    return path, fetched


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
