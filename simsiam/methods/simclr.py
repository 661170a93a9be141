"""SimCLR (Chen, Kornblith, Norouzi and Hinton, arXiv 2002.05709): two views, told apart from all other images."""

import torch
from torch import Tensor, nn

from simsiam.losses.nt_xent import nt_xent
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp, predictor


class SimCLR(Method):
    """Encoder f and projector g; L = NT-Xent over both views of the images of all ranks (equation 1).

    Batch-norm statistics are per view over all ranks. The last batch-norm of the projector scales and does not shift,
    as in the official code.

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output.
        projector_layers: 2 in the paper, 3 in SimSiam's improved reproduction of it (its appendix C).
        projector_hidden: width of the projector's hidden layers; 0 is the encoder's feature width, as published.
        temperature: t of the loss; 0.1 on ImageNet, 0.5 on CIFAR-10 (the paper's table 5 and appendix B.9).
        predictor_hidden: width of a predictor h behind one of the two views; 0 is none. 66.4 instead of 66.5, and
            66.0 with `stop_gradient` (SimSiam, section 6.2).
        stop_gradient: no gradient into the other view. With either of the two the loss is the mean of both ways round,
            L = (NT-Xent(h(z1), z2) + NT-Xent(h(z2), z1)) / 2 (footnote 7 there swaps the views; the mean is inferred).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 3,
        projector_hidden: int = 0,
        temperature: float = 0.1,
        predictor_hidden: int = 0,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        width = self.encoder.feature_dim
        self.projector = mlp(width, projector_hidden or width, dim, projector_layers, output_norm=True)
        self.projector[-1].bias.requires_grad_(False)
        self.predictor = predictor(dim, predictor_hidden) if predictor_hidden else None
        self.temperature, self.stop_gradient = temperature, stop_gradient
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        z = self.projector(self.encoder(stack_views(views)))
        both = z.view(self.num_views, -1, z.shape[1])
        if self.predictor is None and not self.stop_gradient:
            return Output(nt_xent(both, self.temperature), both.detach(), {})
        p = z if self.predictor is None else self.predictor(z)
        (p1, p2), (z1, z2) = p.chunk(2), (z.detach() if self.stop_gradient else z).chunk(2)
        ways = torch.stack([p1, z2]), torch.stack([p2, z1])
        loss = sum(nt_xent(way, self.temperature) / 2 for way in ways)
        return Output(loss, both.detach(), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        trained = [*self.encoder.parameters(), *self.projector.parameters()]
        groups = {"encoder": [p for p in trained if p.requires_grad]}
        return groups if self.predictor is None else {**groups, "predictor": list(self.predictor.parameters())}
