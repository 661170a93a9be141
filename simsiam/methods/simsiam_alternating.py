"""SimSiam as an alternation of k gradient steps with targets computed once (Chen and He, arXiv 2011.10566, 5.2)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.base import Output, stack_views
from simsiam.methods.simsiam import SimSiam
from simsiam.models.momentum import momentum_copy
from simsiam.training.module import Moment


class AlternatingSimSiam(SimSiam):
    """SimSiam whose targets are those of the weights at the beginning of a block of k steps.

    The paper computes the targets eta of a block's k batches ahead, and keeps them in memory. A view is a function of
    seed, epoch, image and number, and batch-norm in training mode one of the batch, so the same targets come out when
    each batch's are computed at its step, by encoder and projector frozen as they were at the block's beginning. That
    takes one forward pass a step, as the paper's way does; it needs memory for a second network instead of k batches of
    targets; and the frozen network is part of the checkpoint, so a run goes on in the middle of a block.

    Args:
        alternate_steps: k; 1 is SimSiam, to the bit; `epoch` is the steps of an epoch.
        options: those of SimSiam, but for `stop_gradient`, which is what this is about.
    """

    def __init__(
        self, encoder: str | nn.Module = "resnet50", *, alternate_steps: int | Literal["epoch"] = 1, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        if not self.stop_gradient:
            raise UserError(
                "method.stop_gradient false has no meaning in simsiam-alternating: its targets are constants"
            )
        if alternate_steps != "epoch" and alternate_steps < 1:
            raise UserError(f"method.alternate_steps must be at least 1, or epoch, not {alternate_steps}")
        self.alternate_steps = alternate_steps
        self.frozen = momentum_copy(nn.Sequential(self.encoder, self.projector))

    def before_step(self, at: Moment) -> None:
        block = at.steps_per_epoch if self.alternate_steps == "epoch" else self.alternate_steps
        if at.step % block == 0:
            self.frozen.load_state_dict(nn.Sequential(self.encoder, self.projector).state_dict())

    def forward(self, *views: Tensor) -> Output:
        images = stack_views(views)
        with torch.no_grad():
            eta = self.frozen(images)
        z = self.projector(self.encoder(images))
        return self.compare(self.predictor(z), eta, z)
