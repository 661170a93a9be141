"""The residual blocks of a network: the units of `--compile` and of `--recompute`."""

from torch import nn

_BLOCKS = ("BasicBlock", "Bottleneck")  # of torchvision, which ours are too, and of timm


def residual_blocks(module: nn.Module) -> list[nn.Module]:
    """All residual blocks inside `module`, in order."""
    return [part for part in module.modules() if type(part).__name__ in _BLOCKS]
