"""Two networks that share no weight in place of SimSiam's one, each predicting what the other sees in the other view.

Source: hanseungwook/SimSiam, branches no-sg and no-sg-alt; no accuracy is published. In spite of the name, targets are
detached: what SimSiam has once, network and its detached self, is here two networks.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from simsiam.losses.cosine import negative_cosine
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import predictor, projector
from simsiam.training.module import Moment


class TwoNetworks(Method):
    """L = D(h_f(f(x1)), g(x2)) / 2 + D(h_g(g(x2)), f(x1)) / 2, D the negative cosine, its second argument detached.

    f sees view 1 and g view 2, each an encoder and a projector with a predictor h. f's encoder is `encoder`, which is
    exported and evaluated.

    Args:
        encoder: name of an encoder, which g draws anew; or a module with `feature_dim`, of which g begins as a copy.
        dim, projector_layers, projector_hidden, predictor_hidden, output_affine: as in SimSiam; the source has the
            last.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 2048,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        predictor_hidden: int = 512,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.second_encoder = build_encoder(copy.deepcopy(encoder))
        width = self.encoder.feature_dim
        sizes = width, projector_hidden or width, dim, projector_layers, output_affine
        self.projector, self.second_projector = projector(*sizes), projector(*sizes)
        self.predictor, self.second_predictor = (predictor(dim, predictor_hidden) for _ in range(2))
        per_view_batchnorm(self, 1)  # a network sees one view

    def forward(self, *views: Tensor) -> Output:
        x1, x2 = stack_views(views).chunk(2)
        f, g = self.projector(self.encoder(x1)), self.second_projector(self.second_encoder(x2))
        of_f = negative_cosine(self.predictor(f), g.detach())
        of_g = negative_cosine(self.second_predictor(g), f.detach())
        return Output(of_f / 2 + of_g / 2, torch.stack([f, g]).detach(), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "predictor": list(self.predictor.parameters()),
            "second_encoder": [*self.second_encoder.parameters(), *self.second_projector.parameters()],
            "second_predictor": list(self.second_predictor.parameters()),
        }


class AlternatingTwoNetworks(TwoNetworks):
    """f and its predictor move in one step, g and its predictor in the next.

    In the source each batch has a step of f and, by another forward pass, one of g. Here a step has a batch of its own:
    twice the epochs give each network as many updates. The weights and the momentum of the network whose turn it is not
    rest; its batch-norm statistics move.
    """

    def moving_groups(self, at: Moment) -> Collection[str]:
        return ("second_encoder", "second_predictor") if at.step % 2 else ("encoder", "predictor")
