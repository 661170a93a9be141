"""The few collectives of a run beside those of data parallelism; each is the identity on one rank."""

import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.distributed.host_memory import HostMemory
from simsiam.distributed.waiting import waiting

# Renamed in torch 2.14; the old name warns there, the new one is missing before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_FEW = 1 << 17  # numbers of all ranks together


_host_memory: HostMemory | None = None  # beside the process group, which is one of a process as well


def meet_in(memory: HostMemory | None) -> None:
    """From now on what is on the CPU crosses the ranks there; with None by the process group."""
    global _host_memory
    _host_memory = memory


def meets_in_memory(device: torch.device) -> bool:
    """Whether what is on `device` crosses the ranks through the memory of their host."""
    return _host_memory is not None and device.type == "cpu"


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over ranks of a tensor of equal shape on each, without gradient."""
    if world_size() == 1:
        return value
    return add_up(value.detach().clone(memory_format=torch.contiguous_format)) / world_size()


@torch.no_grad()
def share(statistics: list[Tensor]) -> None:
    """Makes each of some tensors (C,), equal in shape on all ranks, the mean over ranks, in place: one collective."""
    if world_size() == 1 or not statistics:
        return
    shared = mean_over_ranks(torch.cat(statistics)).split([len(statistic) for statistic in statistics])
    torch._foreach_copy_(statistics, list(shared))


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks of a tensor of equal shape on each, without gradient."""
    if world_size() == 1:
        return value
    return add_up(value.detach().clone(memory_format=torch.contiguous_format))


def add_up(value: Tensor) -> Tensor:
    """Makes a contiguous tensor the sum over ranks, in place; returns it.

    Gloo sends a few numbers round its ring in segments, many times to and fro; each rank's to all and a sum on each is
    the same sooner (256 numbers on two ranks: 0.2 ms and not 1.9).
    """
    in_memory = meets_in_memory(value.device)
    if not (in_memory or value.is_cuda) and value.numel() * world_size() <= _FEW:
        return value.copy_(gather_equal(value.unsqueeze(0)).sum(0))
    with waiting.counted(value.device):
        if in_memory:
            _host_memory.add_up(value)
        else:
            dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """(n_r, ...) of each rank, which may differ in n_r, as one (sum n_r, ...) in rank order, without gradient."""
    if world_size() == 1:
        return rows
    counts = gather_equal(torch.tensor([rows.shape[0]], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    everyone = gather_equal(padded).view(world_size(), max(counts), *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(everyone, counts)])


def gather_equal(rows: Tensor) -> Tensor:
    """(n, ...) of each rank, equal in shape, as one (W * n, ...) in rank order, without gradient."""
    if world_size() == 1:
        return rows
    everyone = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
    rows = rows.detach().contiguous()
    with waiting.counted(rows.device):
        if meets_in_memory(rows.device):
            _host_memory.gather(everyone, rows)
        else:
            _all_gather(everyone, rows)
    return everyone


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather_equal`, and a gradient that any rank gives to these rows comes back here.

    Backward adds up what the ranks give, without a factor: where each rank's loss is the mean over its own images, the
    gradient that data parallelism averages over ranks is that of the one loss over all images.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return gather_equal(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad.contiguous()).chunk(world_size())[rank()]
