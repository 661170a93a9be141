"""What the host has decided, on the device."""

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on a device. To a GPU it goes from memory that does not move, or the host may wait for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda" and torch.cuda.is_available():  # tests have a device without a GPU
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
