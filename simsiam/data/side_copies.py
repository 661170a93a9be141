"""Copies of batches to a GPU that run beside its computation."""

import torch
from torch import Tensor


class SideCopies:
    """Copies tensors to a device; to a GPU on a stream of its own, so that a batch crosses while the last one computes.

    The host is a step ahead of the GPU as it is, so a batch need not be asked for before its turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, for use on its current stream; from pinned memory nothing waits on the host."""
        if self._stream is None:
            return tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        # The memory is of the other stream, which must not write there again before this one has read it.
        copy.record_stream(computing)
        return copy
