"""The linear protocol: fully connected layers on frozen features, one, or one for each rate of a sweep."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.training.module import Trainable


class ProbeOutput(NamedTuple):
    """loss: float32 scalar, the sum over heads; losses: (K,) and logits: (K, N, C), float32, detached."""

    loss: Tensor
    losses: Tensor
    logits: Tensor


def new_head(features: int, classes: int) -> nn.Linear:
    """A classifier with weight N(0, 0.01) and bias 0 (official `main_lincls.py`, and the 1% / 10% protocols)."""
    head = nn.Linear(features, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


class LinearProbe(Trainable):
    """A frozen encoder in evaluation mode, and K classifiers on the same features, which is all that trains.

    All heads start alike. Each has its own loss, so its gradients are what they would be in a run of its own, and its
    own parameter group, so its rate is its own. Heads compute in float32 whatever the encoder computes in.

    Args:
        heads: their names, which are those of the parameter groups.
        batchnorm: normalise the features, without scale and shift, over the images of all ranks.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, heads: Sequence[str] = ("head",), batchnorm: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        width = encoder.feature_dim
        # eps as in MAE's probe: pooled features may vary by little.
        norm = ViewBatchNorm(nn.BatchNorm1d(width, eps=1e-6, affine=False), views=1) if batchnorm else nn.Identity()
        self.norm, self.names = norm, tuple(heads)
        first = new_head(width, num_classes)
        self.heads = nn.ModuleList([first])
        for _ in self.names[1:]:
            other = nn.Linear(width, num_classes)
            other.load_state_dict(first.state_dict())
            self.heads.append(other)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Training mode of the heads; the encoder never leaves evaluation mode, so its statistics cannot move."""
        super().train(mode)
        self.encoder.eval()
        return self

    def logits(self, inputs: Tensor) -> Tensor:
        """Images (N, 3, H, W), or their features (N, D), -> float32 (K, N, C)."""
        with torch.no_grad():
            features = self.encoder(inputs) if inputs.dim() == 4 else inputs
        with torch.autocast(features.device.type, enabled=False):
            features = self.norm(features.float())
            return torch.stack([head(features) for head in self.heads])

    def forward(self, inputs: Tensor, labels: Tensor) -> ProbeOutput:
        """Cross-entropy of each head with labels int64 (N,), of what `logits` takes, or of one view (1, N, 3, H, W)."""
        logits = self.logits(inputs.squeeze(0) if inputs.dim() == 5 else inputs)
        losses = torch.stack([F.cross_entropy(of_head, labels) for of_head in logits])
        return ProbeOutput(losses.sum(), losses.detach(), logits.detach())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Two tensors of each head train: weight and bias."""
        return {name: list(head.parameters()) for name, head in zip(self.names, self.heads, strict=True)}

    @torch.no_grad()
    def classifier(self, head: int = 0) -> nn.Linear:
        """A copy of head number `head` for features as the encoder gives them: a batch-norm is folded into it."""
        trained = self.heads[head]
        copy = nn.Linear(trained.in_features, trained.out_features, device=trained.weight.device)
        copy.load_state_dict(trained.state_dict())
        if isinstance(self.norm, ViewBatchNorm):
            scale = (self.norm.running_var.double() + self.norm.eps).rsqrt()
            weight = trained.weight.double() * scale
            copy.weight.copy_(weight)
            copy.bias.copy_(trained.bias.double() - weight @ self.norm.running_mean.double())
        return copy
