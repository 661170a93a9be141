"""What the training loop knows of a method: views in, loss out, parameters in named groups."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simsiam.training.module import Trainable


class Output(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: float32 scalar, the mean over this rank's images.
        projections: (V, N, D) detached, what the health measures look at.
        scalars: further detached float32 scalars worth logging, by name.
    """

    loss: Tensor
    projections: Tensor
    scalars: dict[str, Tensor]


class Method(Trainable):
    """Base of all methods. A subclass is built as `Class(encoder, **options)` and sets `encoder` and `num_views`.

    The training step calls `before_step`, `moving_groups` and `after_step` (simsiam.training.module). The parameter
    group `predictor` may have a schedule of its own (`optim.predictor_lr`).
    """

    encoder: nn.Module
    num_views: int = 2
    loss_range: tuple[float, float] | None = None
    """Of a loss that is linear in the mean cosine of predictions and targets: its values at cosines 1 and 0. With these
    the verdict on a run takes the loss into account."""
    collapsed_std: float = 0.6
    warn_std: float = 0.8
    """Spreads of the projections below which a run is called collapsed, or warned of, unless its settings name others.
    These are for batch norm on the output; without, a collapse ends near 0, and 0.2 and 0.5 are right."""
    takes_samples: bool = False
    """Whether `forward` is called with sample ids int64 (N,) behind the views (V, N, 3, H, W)."""
    is_compiled: bool = False
    """Whether its parts are compiled, so that another graph costs minutes."""
    takes_small_views: bool = False
    """Whether `forward` may be called with small views (W, N, 3, S, S) behind the views."""

    def prepare(self, num_images: int, global_batch: int) -> None:
        """Called once before training, when the set and the batch are known: banks and queues get their size."""

    def forward(self, *views: Tensor) -> Output:
        """Loss of V views, given as V tensors (N, 3, H, W) or as one (V, N, 3, H, W)."""
        raise NotImplementedError


def stack_views(views: tuple[Tensor, ...]) -> Tensor:
    """One batch (V * N, 3, H, W), view after view, of V tensors (N, 3, H, W) or of one (V, N, 3, H, W)."""
    if len(views) == 1 and views[0].dim() == 5:
        return views[0].flatten(0, 1)
    return torch.cat(views)
