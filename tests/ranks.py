"""A function on several gloo ranks."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` in n processes of one group; what each returned, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (n, folder, function, arguments), nprocs=n, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(n)]


def _rank(rank: int, n: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", n), rank=rank, world_size=n)
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
