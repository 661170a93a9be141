"""A copy of the state in host memory, which training may leave behind while it is being written."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """Buffers that one save after another is copied into: fresh memory would cost a page fault a page, each time."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, on the CPU; waits for the device. The copy before this one is overwritten."""
        self._held = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        on_gpu = False
        for name, tensor in tensors.items():
            self._held[name].copy_(tensor, non_blocking=True)
            on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return self._held

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype:
            return held
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def checksums(tensors: Mapping[str, Tensor]) -> list[int]:
    """A CRC-32 of the bytes of each CPU tensor, in order: it changes with any single bit."""
    return [zlib.crc32(_bytes(tensor)) for tensor in tensors.values()]


def _bytes(tensor: Tensor) -> memoryview:
    # In the order of memory, which is the same on all ranks: channels_last weights need no copy.
    strides = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(strides).contiguous()
    return memoryview(dense.flatten().view(torch.uint8).numpy())


def differing(names: list[str], of_ranks: list[list[int]]) -> str | None:
    """Where the ranks' checksums part, as words: the tensor, and the ranks that are not with the majority."""
    for position, name in enumerate(names):
        values = [sums[position] for sums in of_ranks]
        usual = max(values, key=values.count)
        ranks = [str(rank) for rank, value in enumerate(values) if value != usual]
        if ranks:
            return f"{name} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"
    return None
