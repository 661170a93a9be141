"""Views drawn together and a density ratio of pairs, end to end with one optimiser; and that ratio alone.

Source: hanseungwook/SimSiam, branches joint, joint-predictor, baseline-x and baseline-h; no accuracy is published.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simsiam.errors import UserError
from simsiam.losses.cosine import negative_cosine
from simsiam.losses.density_ratio import logistic_ratio
from simsiam.methods.base import Output, stack_views
from simsiam.methods.pairs import Pairs
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.discriminator import Discriminator
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import predictor, projector


class Joint(Pairs):
    """L = -w_c cos(z1, z2) + w_l (BCE(d(z1, z2), 1) + BCE(d(fake), 0)) / 2: nothing detached, all trained together.

    Fake pairs are z1 and z2, each permuted over the batch. Beside the loss: `cosine` and `logistic`, its two parts
    without their weights.

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output.
        projector_layers, projector_hidden, output_affine: as in SimSiam; the source has the last.
        dropout: in the discriminator d.
        cosine_weight, logistic_weight: w_c and w_l.
        predict: a predictor h, a quarter of `dim` wide inside. The cosine is then the mean of those of (h(z1), z2) and
            (h(z2), z1), and d's pairs are (h(z1), z2).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        dropout: float = 0.5,
        cosine_weight: float = 1.0,
        logistic_weight: float = 10.0,
        predict: bool = False,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        width = self.encoder.feature_dim
        self.projector = projector(width, projector_hidden or width, dim, projector_layers, output_affine)
        self.predictor = predictor(dim, dim // 4) if predict else nn.Identity()
        self.discriminator = Discriminator(2 * dim, dropout=dropout)
        self.cosine_weight, self.logistic_weight = cosine_weight, logistic_weight
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        self._next_place()
        z = self.projector(self.encoder(stack_views(views)))
        z1, z2 = z.chunk(2)
        p1, p2 = self.predictor(z).chunk(2)
        cosine = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        logistic = logistic_ratio(*self.discriminator(self._real_and_fake(p1, z2), self._seed()))
        scalars = {"cosine": cosine.detach(), "logistic": logistic.detach()}
        loss = self.cosine_weight * cosine + self.logistic_weight * logistic
        return Output(loss, z.detach().unflatten(0, (2, -1)), scalars)


class RatioOnly(Pairs):
    """L = (BCE(d(real pair), 1) + BCE(d(fake pair), 0)) / 2, nothing detached, all trained together.

    A fake pair has two views of two images (both halves of the pairs permuted over the batch).

    Args:
        encoder, dim, projector_layers, projector_hidden, output_affine, dropout: as in Joint; heads are of level z.
        level: where a pair is put together. z: d reads two projections. h: d reads two images' features. x: two images
            go through the encoder as one of 6 channels, and d reads the features of the pair. The 6-channel kernel of
            the first convolution is ((S + T) / 2, (S - T) / 2): S is the encoder's own kernel, T the method's parameter
            `difference`. On an image paired with itself that is S, so the encoder that is exported and that kNN and
            protocols look at is, exactly, the one of pairs on an image beside itself. Such pairs do not occur in
            training, and nothing asks for features that tell such pairs apart: read its accuracies with that in mind.

    Raises UserError at level x for an encoder without a convolution of 3 channels.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        level: Literal["x", "h", "z"] = "z",
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        dropout: float = 0.5,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        width, self.level = self.encoder.feature_dim, level
        self.projector: nn.Module = nn.Identity()
        if level == "z":
            self.projector = projector(width, projector_hidden or width, dim, projector_layers, output_affine)
        elif level == "x":
            self._kernel, kernel = _first_kernel(self.encoder)
            self.difference = nn.Parameter(torch.empty_like(kernel))
            nn.init.kaiming_normal_(self.difference, mode="fan_out", nonlinearity="relu")
        self.discriminator = Discriminator({"x": width, "h": 2 * width, "z": 2 * dim}[level], dropout=dropout)
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        self._next_place()
        x = stack_views(views)
        if self.level == "x":
            z = self._features_of_pairs(*x.chunk(2))
            pairs = z.unflatten(0, (2, -1))
        else:
            z = self.projector(self.encoder(x))
            pairs = self._real_and_fake(*z.chunk(2))
        loss = logistic_ratio(*self.discriminator(pairs, self._seed()))
        return Output(loss, z.detach().unflatten(0, (2, -1)), {})

    def _features_of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Features (2 N, feature_dim) of the real and then of the fake pairs, from views (N, 3, H, W)."""
        pairs = torch.cat([torch.cat(pair, dim=1) for pair in ((first, second), self._shuffled(first, second))])
        own = self.encoder.get_parameter(self._kernel)
        kernel = torch.cat([own + self.difference, own - self.difference], dim=1) / 2
        return functional_call(
            self.encoder, {self._kernel: kernel}, (pairs.contiguous(memory_format=torch.channels_last),)
        )


def _first_kernel(encoder: nn.Module) -> tuple[str, Tensor]:
    """Name and tensor of the kernel that sees the image."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return f"{name}.weight", module.weight
    raise UserError(
        "method.level x widens the encoder's first convolution, and this encoder has none of 3 channels; "
        "take a ResNet, or level h or z"
    )
