"""A network that follows another slowly: the momentum branch of MoCo and BYOL."""

import copy

import torch
from torch import nn


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy with the same numbers, which no gradient reaches. Its batch-norm statistics are its own from now on."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Moves each parameter of `slow` to momentum x slow + (1 - momentum) x fast; buffers stay."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)
