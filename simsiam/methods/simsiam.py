"""SimSiam (Chen and He, arXiv 2011.10566): two views, a predictor, a stop-gradient."""

from torch import Tensor, nn

from simsiam.losses.cosine import negative_cosine
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import predictor, projector


class SimSiam(Method):
    """encoder f, projector and predictor h; L = D(p1, z2) / 2 + D(p2, z1) / 2 with z detached (section 3, algorithm 1).

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output and of the predictor's.
        projector_layers: 3 on ImageNet, 2 on CIFAR (appendices A and D).
        projector_hidden: width of the projector's hidden layers; 0 is the encoder's feature width, as published.
        predictor_hidden: width of the predictor's bottleneck, a quarter of `dim` in the paper.
        stop_gradient: False lets the gradient into z as well, which collapses (section 4.1).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 2048,
        projector_layers: int = 3,
        projector_hidden: int = 0,
        predictor_hidden: int = 512,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder) if isinstance(encoder, str) else encoder
        width = self.encoder.feature_dim
        self.projector = projector(width, projector_hidden or width, dim, layers=projector_layers)
        self.predictor = predictor(dim, predictor_hidden)
        self.stop_gradient = stop_gradient
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        z = self.projector(self.encoder(stack_views(views)))
        p = self.predictor(z)
        z1, z2 = (z.detach() if self.stop_gradient else z).chunk(2)
        p1, p2 = p.chunk(2)
        loss = negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2
        return Output(loss, z.detach().view(self.num_views, -1, z.shape[1]), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "predictor": list(self.predictor.parameters()),
        }
