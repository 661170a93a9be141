"""Two players on a density ratio: a discriminator of pairs, and an encoder that makes its pairs easy to know.

Source: hanseungwook/SimSiam, branches adv and adv-mmd; no accuracy is published.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simsiam.distributed.collectives import world_size
from simsiam.errors import UserError
from simsiam.losses.density_ratio import logistic_ratio, minus_probability
from simsiam.losses.mmd import mmd_contrast
from simsiam.methods.base import Output, stack_views
from simsiam.methods.pairs import Pairs
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.discriminator import Discriminator
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import projector
from simsiam.training.module import Moment


class Adversarial(Pairs):
    """d learns (BCE(d(z1, z2), 1) + BCE(d(fake), 0)) / 2, encoder and projector minimise -sigmoid(d(z1, z2)).

    Fake pairs are z1 and z2, each permuted over the batch. There is neither a predictor nor a stop-gradient. `loss` is
    the sum of both players' losses; each player has the gradient of its own. Beside it: `discriminator` and `encoder`.

    At first d moves alone, then in every step, and the encoder beside it in every `encoder_every`-th. Both have the
    gradient of the same weights; in the source the encoder's is of another forward pass, after d has moved.

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output.
        projector_layers, projector_hidden, output_affine: as in SimSiam; the source has the last.
        dropout: in the discriminator.
        discriminator_epochs: epochs at the beginning in which the encoder's weights rest.
        encoder_every: steps from one move of the encoder to the next.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        dropout: float = 0.5,
        discriminator_epochs: float = 10.0,
        encoder_every: int = 5,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        if encoder_every < 1:
            raise UserError(f"method.encoder_every must be at least 1, not {encoder_every}")
        self.encoder = build_encoder(encoder)
        width = self.encoder.feature_dim
        self.projector = projector(width, projector_hidden or width, dim, projector_layers, output_affine)
        self.discriminator = Discriminator(2 * dim, dropout=dropout)
        self.discriminator_epochs, self.encoder_every = discriminator_epochs, encoder_every
        self._needs_graph = True
        per_view_batchnorm(self, self.num_views)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "discriminator": list(self.discriminator.parameters()),
        }

    def before_step(self, at: Moment) -> None:
        super().before_step(at)
        # Data parallelism wants the same graph in every step, and what is compiled would be compiled again for another;
        # one rank that computes as written saves the backward pass that nobody looks at.
        self._needs_graph = world_size() > 1 or self.is_compiled or "encoder" in self.moving_groups(at)

    def moving_groups(self, at: Moment) -> Collection[str]:
        if at.epoch < self.discriminator_epochs or at.step % self.encoder_every:
            return ("discriminator",)
        return ("discriminator", "encoder")

    def forward(self, *views: Tensor) -> Output:
        self._next_place()
        with torch.set_grad_enabled(self._needs_graph and torch.is_grad_enabled()):
            z = self.projector(self.encoder(stack_views(views)))
        z1, z2 = z.chunk(2)
        real, fake = self.discriminator(self._real_and_fake(z1.detach(), z2.detach()), self._seed())
        of_discriminator = logistic_ratio(real, fake)
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        pairs = torch.cat([z1, z2], dim=1).unsqueeze(0)
        of_encoder = minus_probability(functional_call(self.discriminator, constant, (pairs, self._seed(1))))
        scalars = {"discriminator": of_discriminator.detach(), "encoder": of_encoder.detach()}
        return Output(of_discriminator + of_encoder, z.detach().unflatten(0, (2, -1)), scalars)


class AdversarialMMD(Pairs):
    """The same ratio from kernel means in place of a discriminator: encoder and projector minimise `mmd_contrast`.

    Matrices are of the global batch: their memory and time grow with its square and cube, and every rank computes all
    of them.

    With these kernels and 128 channels of unit variance the loss hardly knows whether views agree (64 to 512 random
    points: equal or unrelated halves differ by 0.3% at most); what lowers it are clusters that pairs have in common.

    Args:
        encoder, dim, projector_layers, projector_hidden, output_affine: as in Adversarial.
        sigmas: widths of the Gaussian kernels, over which ratios are averaged.
        ridge: what is added to the diagonal of a kernel matrix.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        sigmas: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
        ridge: float = 1e-3,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        if not sigmas or min(sigmas) <= 0 or ridge <= 0:
            raise UserError(f"method.sigmas and method.ridge must be above 0, not {list(sigmas)} and {ridge}")
        self.encoder = build_encoder(encoder)
        width = self.encoder.feature_dim
        self.projector = projector(width, projector_hidden or width, dim, projector_layers, output_affine)
        self.sigmas, self.ridge = sigmas, ridge
        per_view_batchnorm(self, self.num_views)

    def forward(self, *views: Tensor) -> Output:
        self._next_place()
        z = self.projector(self.encoder(stack_views(views)))
        z1, z2 = z.chunk(2)
        loss = mmd_contrast(z1, z2, self._orders(len(z1), z.device), self.sigmas, self.ridge)
        return Output(loss, z.detach().unflatten(0, (2, -1)), {})
