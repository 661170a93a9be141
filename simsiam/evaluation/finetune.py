"""The semi-supervised protocol: a pretrained encoder and a new classifier, trained together on few labels."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.distributed.collectives import share
from simsiam.evaluation.linear import new_head
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.training.module import Moment, Trainable


class FineTuneOutput(NamedTuple):
    """loss: float32 scalar; logits: (N, C), detached."""

    loss: Tensor
    logits: Tensor


class FineTuned(Trainable):
    """An encoder, all of it trained, and a classifier.

    Args:
        synced: batch-norm statistics over the images of all ranks; else of each rank's own, and only the running ones,
            which evaluation uses, are averaged.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, *, synced: bool = True) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.head = new_head(encoder.feature_dim, num_classes)
        self._synced = synced
        if synced:
            per_view_batchnorm(self.encoder, views=1)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C)."""
        return self.head(self.encoder(images))

    def forward(self, images: Tensor, labels: Tensor) -> FineTuneOutput:
        """Cross-entropy of images (N, 3, H, W), or of one view (1, N, 3, H, W), with labels int64 (N,)."""
        logits = self.logits(images.flatten(0, -4))
        return FineTuneOutput(F.cross_entropy(logits.float(), labels), logits.detach())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and head, which have rates of their own."""
        return {"encoder": list(self.encoder.parameters()), "head": list(self.head.parameters())}

    def after_step(self, at: Moment) -> None:
        """Running statistics that each rank gathered alone become their mean, the same everywhere."""
        if not self._synced:
            share([t for name, t in self.encoder.named_buffers() if name.endswith(("running_mean", "running_var"))])
