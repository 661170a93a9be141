"""SimSiam without predictor, each image's target a moving average of its views (Chen and He, arXiv 2011.10566, 5.2)."""

import torch
from torch import Tensor, nn

from simsiam.distributed.collectives import gather_equal
from simsiam.errors import UserError
from simsiam.methods.base import Output, stack_views
from simsiam.methods.simsiam import SimSiam


class MovingAverageSimSiam(SimSiam):
    """eta of image x becomes m eta + (1 - m) z(x), and is what the other view's z, undetached, is compared with.

    The paper has one view for eta. Here both views count, symmetrically: z1 is compared with m eta + (1 - m) z2 and z2
    with m eta + (1 - m) z1, and the mean of these two is kept. With m = 0 this is SimSiam without predictor, which
    collapses. At an image's first visit, z stands in for eta.

    eta is a buffer (images, dim) in float32 on every rank: 10.5 GB for ImageNet at 2048.

    Args:
        encoder, dim, projector_layers, projector_hidden: as in SimSiam.
        momentum: m, 0.8 in the paper.
    """

    takes_samples = True

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 2048,
        projector_layers: int = 3,
        projector_hidden: int = 0,
        momentum: float = 0.8,
    ) -> None:
        super().__init__(
            encoder, dim=dim, projector_layers=projector_layers, projector_hidden=projector_hidden, predictor="none"
        )
        if not 0 <= momentum < 1:
            raise UserError(f"method.momentum of simsiam-moving-average must be at least 0 and below 1, not {momentum}")
        self.dim, self.momentum = dim, momentum

    def prepare(self, num_images: int, global_batch: int) -> None:
        self.register_buffer("eta", torch.zeros(num_images, self.dim))
        self.register_buffer("visited", torch.zeros(num_images, dtype=torch.bool))

    def forward(self, views: Tensor, samples: Tensor) -> Output:
        z = self.projector(self.encoder(stack_views((views,))))
        return self.compare(z, self._average(z.detach(), samples), z)

    def _average(self, z: Tensor, samples: Tensor) -> Tensor:
        """m eta + (1 - m) z of each view, (V * N, D) in float32; what becomes of eta is known to all ranks."""
        m = self.momentum * self.visited[samples].float().unsqueeze(1)
        averages = m * self.eta[samples] + (1 - m) * z.float().view(self.num_views, -1, self.dim)
        everyone = gather_equal(samples)
        self.eta[everyone] = gather_equal(averages.mean(0))
        self.visited[everyone] = True
        return averages.flatten(0, 1)
