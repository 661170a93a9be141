"""How a method's blocks are computed: as they are, compiled, or once more in the backward pass."""

from torch import nn

from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain
from simsiam.training.compiling import compile_parts
from simsiam.training.recompute import recompute_blocks


def compute_as_asked(method: nn.Module, settings: Pretrain) -> None:
    """Does what `--compile` or `--recompute` asks for, to a network that is not copied any more.

    Raises UserError where both are asked for, and where the encoder cannot be recomputed.
    """
    if settings.compile and settings.recompute:
        raise UserError("--compile and --recompute cannot be had together: leave one out")
    if settings.compile:
        compile_parts(method)
    if settings.recompute:
        recompute_blocks(method)
