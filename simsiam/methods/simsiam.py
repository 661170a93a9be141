"""SimSiam (Chen and He, arXiv 2011.10566): two views, a predictor, a stop-gradient; its ablations are options."""

from typing import Literal

from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.losses.cosine import negative_cosine
from simsiam.losses.softmax_cross_entropy import softmax_cross_entropy
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp

SIMILARITIES = {"cosine": negative_cosine, "cross_entropy": softmax_cross_entropy}
# Which view's prediction (from 0) is compared with which view's projection.
PAIRS = {
    "symmetric": ((0, 1), (1, 0)),
    "asymmetric": ((0, 1),),
    "asymmetric_2x": ((0, 1), (2, 3)),
}


class SimSiam(Method):
    """encoder f, projector and predictor h; L = D(p1, z2) / 2 + D(p2, z1) / 2 with z detached (section 3, algorithm 1).

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output and of the predictor's.
        projector_layers: 3 on ImageNet, 2 on CIFAR (appendices A and D).
        projector_hidden: width of the projector's hidden layers; 0 is the encoder's feature width, as published.
        predictor_hidden: width of the predictor's bottleneck, a quarter of `dim` in the paper.
        stop_gradient: False lets the gradient into z as well, which collapses (section 4.1).
        predictor: none compares z itself (table 1a); fixed keeps h as it was drawn (1b), which is no collapse: the loss
            stays high and the spread of z healthy. Neither has a parameter group `predictor`.
        batchnorm: in projector and predictor (table 3): none (a), behind their hidden layers (b), behind the
            projector's output too (c, the method), behind the predictor's output too (d). Where none follows, a Linear
            has a bias.
        output_affine: scale and shift in the batch-norm behind the projector's output: the paper's table has both, 68.1
            with and 68.2 without; the official code is without.
        similarity: D is the negative cosine, or the cross-entropy of softmaxes over channels (section 4.5).
        symmetry: asymmetric is D(p1, z2) alone; asymmetric_2x takes four views of an image, (D(p1, z2) + D(p3, z4)) / 2
            (section 4.6).

    Raises UserError for options that exclude one another.
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
        predictor: Literal["trained", "none", "fixed"] = "trained",
        batchnorm: Literal["none", "hidden", "output", "both"] = "output",
        output_affine: bool = False,
        similarity: Literal["cosine", "cross_entropy"] = "cosine",
        symmetry: Literal["symmetric", "asymmetric", "asymmetric_2x"] = "symmetric",
    ) -> None:
        super().__init__()
        if predictor == "none" and batchnorm == "both":
            raise UserError("method.batchnorm both is behind the predictor, and method.predictor is none: take output")
        if output_affine and batchnorm not in ("output", "both"):
            raise UserError(f"method.output_affine needs method.batchnorm output or both, not {batchnorm}")
        self.encoder = build_encoder(encoder)
        width, hidden_norm = self.encoder.feature_dim, batchnorm != "none"
        self.projector = mlp(
            width, projector_hidden or width, dim, projector_layers, hidden_norm=hidden_norm,
            output_norm=batchnorm in ("output", "both"), output_affine=output_affine,
        )  # fmt: skip
        self.predictor: nn.Module = nn.Identity()
        if predictor != "none":
            self.predictor = mlp(dim, predictor_hidden, dim, hidden_norm=hidden_norm, output_norm=batchnorm == "both")
            self.predictor.requires_grad_(predictor == "trained")
        self.stop_gradient, self.similarity, self.pairs = stop_gradient, SIMILARITIES[similarity], PAIRS[symmetry]
        self.loss_range = (-1.0, 0.0) if similarity == "cosine" else None
        self.num_views = 1 + max(view for pair in self.pairs for view in pair)
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        z = self.projector(self.encoder(stack_views(views)))
        p = self.predictor(z)
        return self.compare(p, z.detach() if self.stop_gradient else z, z)

    def compare(self, p: Tensor, targets: Tensor, z: Tensor) -> Output:
        """The mean of D(p_i, target_j) over the pairs of views; p, targets and projections z are (V * N, D)."""
        p, targets = p.chunk(self.num_views), targets.chunk(self.num_views)
        loss = sum(self.similarity(p[i], targets[j]) for i, j in self.pairs) / len(self.pairs)
        return Output(loss, z.detach().view(self.num_views, -1, z.shape[1]), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "predictor": [p for p in self.predictor.parameters() if p.requires_grad],
        }
        return {name: parameters for name, parameters in groups.items() if parameters}
