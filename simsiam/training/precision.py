"""fp32, bf16 or fp16: the autocast of a forward pass, and the loss scale that fp16 needs."""

from contextlib import AbstractContextManager

import torch

from simsiam.errors import UserError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and gradient scaling of a run.

    Args:
        name: fp32, bf16, fp16, or auto for bf16 where the device computes in it and fp32 elsewhere. Only fp16 scales:
            its smallest normal number, 6e-5, is above SimSiam's gradients.

    Attributes:
        name: the choice made.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if _computes_in_bf16(device) else "fp32"
        if name == "bf16" and device.type == "cuda" and not _computes_in_bf16(device):
            raise UserError("--precision bf16 is not supported by this GPU; take --precision fp16 or fp32")
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=_TYPES.get(self.name), enabled=self.name in _TYPES)


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without the instructions oneDNN converts to and fro: ten times slower than float32 was measured.
    return torch.cpu._is_avx512_bf16_supported()
