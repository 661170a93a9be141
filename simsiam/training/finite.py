"""Notices the first step whose loss or gradient is not finite, without waiting for the device at every step."""

import torch
from torch import Tensor

_NEVER = 1 << 62


class FiniteGuard:
    """Collects each step's flag on the device; reading it is the only wait."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.tensor(_NEVER, device=device)

    def watch(self, step: int, finite: Tensor) -> None:
        """Notes the flag (bool scalar) of step number `step`."""
        self._first = torch.where(finite, self._first, self._first.clamp_max(step))

    def first_bad(self) -> int | None:
        """The first step that was not finite; None while there is none. Waits for the device."""
        first = int(self._first)
        return None if first == _NEVER else first
