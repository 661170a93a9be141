"""Memory for time: what a residual block keeps for its backward pass is computed again then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simsiam.errors import UserError
from simsiam.models.batchnorm import NormOfViews
from simsiam.models.blocks import residual_blocks


def recompute_blocks(module: nn.Module) -> None:
    """Has each residual block of `module` keep its input alone between forward and backward.

    Loss, gradients and batch-norm's running statistics stay the same: on a CPU to the bit, on a GPU if the same kernels
    are chosen the second time, as with `--deterministic`. Call it on a network that is not copied any more. Raises
    UserError where there is no residual block.
    """
    blocks = residual_blocks(module)
    if not blocks:
        raise UserError("--recompute needs an encoder of residual blocks, such as resnet50; leave it out")
    for block in blocks:
        block.forward = _recomputed(block)


def _recomputed(block: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = block.forward
    norms = [layer for layer in block.modules() if isinstance(layer, NormOfViews)]

    def forward(x: Tensor) -> Tensor:
        if not block.training:
            return plain(x)
        # The blocks draw no random numbers.
        return checkpoint(
            plain, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _resting(norms))
        )  # fmt: skip

    return forward


@contextmanager
def _resting(norms: list[nn.Module]) -> Iterator[None]:
    """Running statistics have moved in the forward pass, and must not once more."""
    for norm in norms:
        norm.tracks = False
    try:
        yield
    finally:  # torch ends a recomputation by an exception, when it has what it needs
        for norm in norms:
            norm.tracks = True
