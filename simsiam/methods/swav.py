"""SwAV (Caron et al., arXiv 2006.09882): which prototypes a view belongs to is predicted from the other views."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.distributed.collectives import gather_equal, rank, world_size
from simsiam.errors import UserError
from simsiam.losses.sinkhorn import sinkhorn
from simsiam.losses.swapped import swapped_prediction
from simsiam.methods.base import Method, Output
from simsiam.models.batchnorm import ViewBatchNorm, per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp
from simsiam.training.module import Moment


class SwAV(Method):
    """Encoder, projector to unit vectors z, prototypes C of unit length; codes q from z C / epsilon by Sinkhorn-Knopp.

    L is the mean cross-entropy of softmax(z C / temperature) of a view with the code of another (equations 1 to 6).
    Codes come from the two large views; smaller ones (multi-crop) may follow, a tensor for each size, and only predict.

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output. projector_hidden: of its hidden layers, which have batch-norm.
        projector_layers: 2 as published, 3 in SimSiam's reproduction (appendix C).
        prototypes: their number K.
        temperature: of the prediction. epsilon, iterations: of Sinkhorn-Knopp.
        freeze_steps: the prototypes stand still for so many steps; an epoch in the official recipes.
        queue: earlier images whose features join a batch to find its codes, for batches small beside K; 0 is none.
        queue_epoch: when the queue begins to fill; it is used once it is full.
    """

    takes_small_views = True

    collapsed_std, warn_std = 0.2, 0.5  # no batch norm on the output

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_steps: int = 313,
        queue: int = 0,
        queue_epoch: float = 15.0,
    ) -> None:
        super().__init__()
        if min(temperature, epsilon) <= 0 or iterations < 1 or queue < 0:
            raise UserError(
                "swav needs method.temperature and method.epsilon above 0, method.iterations at least 1 and "
                "method.queue at least 0"
            )
        self.encoder = build_encoder(encoder)
        self.projector = mlp(self.encoder.feature_dim, projector_hidden, dim, projector_layers)
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.freeze_steps, self.queue_epoch = freeze_steps, queue_epoch
        # Newest step first and its images in the order of the batch, both large views of each; the same on every rank.
        self.register_buffer("queue", torch.zeros(queue, 2, dim) if queue else None)
        self._global_batch = 0
        self._fills = self._uses_queue = False
        self._new: list[Tensor] = []
        per_view_batchnorm(self, self.num_views)

    def prepare(self, num_images: int, global_batch: int) -> None:
        self._global_batch = global_batch

    @torch.no_grad()
    def before_step(self, at: Moment) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        if self.queue is not None:
            steps_filling = at.step - math.ceil(self.queue_epoch * at.steps_per_epoch)
            self._fills, self._new = steps_filling >= 0, []
            self._uses_queue = self._fills and steps_filling * self._global_batch >= len(self.queue)

    def forward(self, *views: Tensor) -> Output:
        crops = views if views[0].dim() == 5 else (torch.stack(views),)
        features = [_expecting(len(c), self.encoder)(c.flatten(0, 1)) for c in crops]
        total = sum(map(len, crops))
        z = _expecting(total, self.projector)(torch.cat(features))
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1).view(total, -1, z.shape[1])
        # bfloat16 rounds a score by up to 0.002, which over epsilon is 4% of a code.
        with torch.autocast(z.device.type, enabled=False):
            scores = self.prototypes(z)
            codes = self._codes(scores[:2])
        if self._fills:
            self._new.append(z[:2].detach().transpose(0, 1))
        return Output(swapped_prediction(scores, codes, self.temperature), z[:2].detach(), {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": [*self.encoder.parameters(), *self.projector.parameters()],
            "prototypes": list(self.prototypes.parameters()),
        }

    def moving_groups(self, at: Moment) -> set[str] | None:
        return {"encoder"} if at.step < self.freeze_steps else None

    def after_step(self, at: Moment) -> None:
        if self._fills:
            newest = gather_equal(torch.cat(self._new))
            self.queue.copy_(torch.cat([newest, self.queue])[: len(self.queue)])
            self._fills, self._new = False, []

    @torch.no_grad()
    def _codes(self, scores: Tensor) -> Tensor:
        """(2, N, K) codes of this rank's images from their scores; the queue's images are shared among the ranks."""
        images = scores.shape[1]
        if self._uses_queue:
            held = self.prototypes(self.queue[rank() :: world_size()]).transpose(0, 1)
            scores = torch.cat([held, scores], dim=1)
        return sinkhorn(scores, self.epsilon, self.iterations)[:, -images:]


def _expecting(views: int, network: nn.Module) -> nn.Module:
    """The network, whose next batch is `views` views."""
    for module in network.modules():
        if isinstance(module, ViewBatchNorm):
            module.views = views
    return network
