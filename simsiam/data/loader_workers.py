"""Worker processes of a loader: what they make is handed over as it is, and they end with their rank."""

import os
import signal
import sys
import threading
from collections.abc import Iterable

from torch.utils.data import DataLoader, Dataset

from simsiam.distributed.processes import end_with_parent


def in_workers(
    dataset: Dataset, keys: Iterable, workers: int, *, ahead: int = 2, pin_memory: bool = False
) -> DataLoader:
    """`dataset[key]` of each key, in order, each made in a worker process, or in this one where there are none.

    `ahead`: items that a worker makes before they are asked for.
    """
    return DataLoader(
        dataset,
        sampler=keys,
        batch_size=None,
        collate_fn=as_is,
        num_workers=workers,
        worker_init_fn=stay_with_rank,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin_memory,
    )


def as_is(item: object) -> object:
    """A DataLoader's `collate_fn`: keeps what a worker made, where the default would turn arrays into tensors."""
    return item


def stay_with_rank(worker: int) -> None:
    """A DataLoader's `worker_init_fn`.

    What asks a job to end may ask all of its processes at once, as a terminal and some schedulers do. The rank then
    saves, for which it takes a step or two more, but torch has a worker end by a SIGTERM from anybody. And a worker
    that is stopped or stuck does not notice by itself that its rank is gone.
    """
    if sys.platform != "linux":
        return
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_where_the_rank_asks, name="stay_with_rank", daemon=True).start()


def _end_where_the_rank_asks() -> None:
    rank = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)
