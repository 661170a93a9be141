"""BYOL (Grill et al., arXiv 2006.07733): a network predicts what its own moving average sees in the other view."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.losses.cosine import negative_cosine
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp
from simsiam.models.momentum import follow, momentum_copy
from simsiam.training.module import Moment


class BYOL(Method):
    """Online encoder f, projector g, predictor q, and target f', g'; L = |q1 - z2'|^2 + |q2 - z1'|^2 of unit vectors.

    That is 2 - 2 cos(q1, z2') + 2 - 2 cos(q2, z1'), from 8 down to 0 (section 3.1, equation 2 and the line below it).
    The target takes no gradient: after every step it follows the online network (equation 1 and section 3.2).

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output and of the predictor's.
        projector_hidden, predictor_hidden: width of their one hidden layer, which alone has a batch-norm.
        momentum: of the target at the first step; it rises to 1 along a cosine over the run. 0.99 for 100 epochs and
            300, 0.996 for 1000 in the paper.
    """

    collapsed_std, warn_std = 0.2, 0.5  # no batch norm on the output

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 256,
        projector_hidden: int = 4096,
        predictor_hidden: int = 4096,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum of byol must be between 0 and 1, not {momentum}")
        self.encoder = build_encoder(encoder)
        self.projector = mlp(self.encoder.feature_dim, projector_hidden, dim, bias=False)
        self.predictor = mlp(dim, predictor_hidden, dim, bias=False)
        self.target = momentum_copy(nn.Sequential(OrderedDict(encoder=self.encoder, projector=self.projector)))
        self.momentum = momentum
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        images = stack_views(views)
        with torch.no_grad():  # before the online network, whose activations then fill the memory
            target1, target2 = self.target(images).chunk(2)
        z = self.projector(self.encoder(images))
        p1, p2 = self.predictor(z).chunk(2)
        loss = (2 + 2 * negative_cosine(p1, target2)) + (2 + 2 * negative_cosine(p2, target1))
        return Output(loss, z.detach().view(self.num_views, -1, z.shape[1]), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "predictor": list(self.predictor.parameters()),
        }

    def after_step(self, at: Moment) -> None:
        momentum = self.momentum_at(at)
        follow(self.target.encoder, self.encoder, momentum)
        follow(self.target.projector, self.projector, momentum)

    def momentum_at(self, at: Moment) -> float:
        """tau = 1 - (1 - base) (cos(pi k / K) + 1) / 2 at step k of K (section 3.2)."""
        return 1 - (1 - self.momentum) * (math.cos(math.pi * at.step / at.total_steps) + 1) / 2
