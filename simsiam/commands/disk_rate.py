"""How fast a set's files come from the disk, and not from the memory that the system keeps them in."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.sources.folder import FolderImages

_PROBED = 16  # files that are asked for whether dropping them from the page cache worked


class Read(NamedTuple):
    """Rates of reading whole files.

    Attributes:
        alone, together: files a second by one reader, and by all `readers` at once.
        mean_bytes: of a file.
        is_cold: the files came from the disk; else from the page cache, where they could not be dropped from it.
    """

    alone: float
    together: float
    readers: int
    mean_bytes: float
    is_cold: bool


def measure_disk(images: EncodedImages, order: np.ndarray, workers: int, seconds: float) -> Read:
    """Reads files for `seconds` by one reader and as long by `workers`.

    Args:
        order: samples to read, int64 (n,), one at least, again from the first after the last.
    """
    probed = [_is_dropped(images, int(sample)) for sample in order[:_PROBED]]
    in_turn = cycle(order.tolist())  # after a round, files of the round before are dropped again

    def read(sample: int) -> int:
        try:
            return len(images.read_bytes(sample))
        except BadImage:  # it went since it was checked
            return 0

    def rates(readers: int) -> tuple[float, float]:
        files, total_bytes, taken, began = 0, 0, 0.0, time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            while time.perf_counter() - began < seconds or not files:
                some = list(islice(in_turn, _PROBED * readers))
                for sample in some:
                    _drop(images, sample)
                start = time.perf_counter()
                total_bytes += sum(pool.map(read, some))
                taken += time.perf_counter() - start
                files += len(some)
        return files / taken, total_bytes / files

    alone, mean_bytes = rates(1)
    together = rates(workers)[0] if workers > 1 else alone
    return Read(alone, together, max(1, workers), mean_bytes, sum(probed) > len(probed) / 2)


def _drop(images: EncodedImages, sample: int, *, probe: bool = False) -> bool:
    """Takes an image's file out of the page cache; whether it is out, if that is asked, which reads ahead again."""
    if not isinstance(images, FolderImages) or not hasattr(os, "posix_fadvise"):
        return False
    try:
        file = os.open(os.path.join(images.root, images.name(sample)), os.O_RDONLY)
    except OSError:
        return False
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if probe:
            os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)  # fails where it would have to wait for the disk
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system that cannot tell
        return False
    finally:
        os.close(file)


def _is_dropped(images: EncodedImages, sample: int) -> bool:
    return hasattr(os, "RWF_NOWAIT") and _drop(images, sample, probe=True)
