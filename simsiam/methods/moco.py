"""MoCo v2 (He, Fan, Wu, Xie and Girshick, arXiv 1911.05722; Chen, Fan, Girshick and He, 2003.04297)."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.data.counter import permutation
from simsiam.data.to_device import to_device
from simsiam.distributed.collectives import gather_equal, rank, world_size
from simsiam.errors import UserError
from simsiam.losses.info_nce import info_nce
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp
from simsiam.models.momentum import follow, momentum_copy
from simsiam.models.split_batchnorm import share_statistics, split_batchnorm
from simsiam.training.module import Moment

_SHUFFLE = 0x5BF1  # names the stream of hashes that key batches are ordered by


class MoCo(Method):
    """Queries of one view against keys of the other, which a slowly following network makes, and a queue of old keys.

    The queue is the same on all ranks. It takes the keys of a step when the step is over, so all micro-batches of a
    step see one queue, and a run with `accumulate` differs from one without by batch-norm statistics only. It starts
    with random directions.

    Args:
        encoder: name of an encoder, or a module with `feature_dim` from images to (N, feature_dim).
        dim: width of the projector's output.
        projector_layers: 2 in version 2, 1 (a Linear) in version 1; there is no batch-norm in it.
        projector_hidden: width of its hidden layers; 0 is the encoder's feature width, as published.
        queue_size: keys in the queue, a multiple of the keys of a step.
        momentum: m of the key network: key <- m key + (1 - m) query, after each step.
        temperature: of the loss; 0.2 in version 2, 0.07 in version 1.
        symmetric: both views are queries and keys, and the loss is the sum of both ways round, as in the authors' CIFAR
            demo (SimSiam's reproduction is symmetric, its appendix C). A step then has two keys an image.
        batchnorm: what keeps a query from knowing its key by the batch-norm statistics they share. `shuffled` keeps
            statistics within `bn_groups` groups of images, and the keys' groups are other ones than the queries'
            (section 3.3). `synced` has statistics over all ranks and no shuffle; the authors say that it is not enough
            (facebookresearch/moco issue 46), and without shuffling their CIFAR demo lost 4 points.
        bn_groups: 8, as on the 8 GPUs of the paper, whatever the number of ranks; that must divide it.
    """

    collapsed_std, warn_std = 0.2, 0.5  # no batch norm on the output

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        dim: int = 128,
        projector_layers: int = 2,
        projector_hidden: int = 0,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        symmetric: bool = False,
        batchnorm: Literal["shuffled", "synced"] = "shuffled",
        bn_groups: int = 8,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        width = self.encoder.feature_dim
        self.projector = mlp(width, projector_hidden or width, dim, projector_layers, hidden_norm=False)
        self.momentum, self.temperature, self.ways = momentum, temperature, 2 if symmetric else 1
        self.shuffles, self.bn_groups = batchnorm == "shuffled", bn_groups
        if self.shuffles:
            split_batchnorm(self, self.ways, bn_groups)
        else:
            per_view_batchnorm(self, self.ways)
        self.key_encoder, self.key_projector = momentum_copy(self.encoder), momentum_copy(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._step, self._fresh = 0, []

    def prepare(self, num_images: int, global_batch: int) -> None:
        keys, size, groups, ranks = global_batch * self.ways, len(self.queue), self.bn_groups, world_size()
        if size < 1 or size % keys:
            raise UserError(
                f"method.queue_size {size} is no multiple of the {keys} keys of a step (--batch-size {global_batch}"
                f"{' x 2 views' * (self.ways == 2)}); take {max(1, round(size / keys)) * keys}"
            )
        if self.shuffles and (groups < 1 or groups % ranks or global_batch % groups):
            raise UserError(
                f"method.bn_groups {groups} must be a multiple of the number of ranks, {ranks}, and divide "
                f"--batch-size {global_batch}; take such a number, or --method.batchnorm synced"
            )
        if self.shuffles and global_batch < 2 * groups:
            raise UserError(self._of_one_image(global_batch))

    def _of_one_image(self, images: int) -> str:
        return (
            f"method.bn_groups {self.bn_groups} leaves one of {images} images to a group's batch-norm, which makes "
            "all of them alike; take a larger --batch-size, a smaller --accumulate or fewer groups"
        )

    def before_step(self, at: Moment) -> None:
        self._step, self._fresh = at.step, []

    def forward(self, *views: Tensor) -> Output:
        images = stack_views(views)
        asked, answering = (images, images) if self.ways == 2 else images.chunk(2)
        keys = self._keys(answering.unflatten(0, (self.ways, -1)))
        q = self.projector(self.encoder(asked)).unflatten(0, (self.ways, -1))
        self._fresh.append(keys)
        own = keys.unflatten(1, (world_size(), -1))[:, rank()]
        pairs = zip(q, own.flip(0))  # both ways round: the key of view 2 for the query of view 1, and the reverse
        loss = sum(info_nce(query, key, self.queue, self.temperature) for query, key in pairs)
        return Output(loss, q.detach() if self.ways == 2 else torch.cat([q.detach(), own]), {})

    @torch.no_grad()
    def _keys(self, views: Tensor) -> Tensor:
        """Keys of length 1 of the images of all ranks (ways, W * N, D), from this rank's views (ways, N, 3, H, W)."""
        order = to_device(self._order(views.shape[1]), views.device) if self.shuffles else None
        if order is not None:
            here = order.unflatten(1, (world_size(), -1))[:, rank()]
            views = torch.stack([gather_equal(view)[rows] for view, rows in zip(views, here)])
        k = self.key_projector(self.key_encoder(views.flatten(0, 1).contiguous(memory_format=torch.channels_last)))
        k = F.normalize(k.to(self.queue.dtype), dim=1)
        keys = gather_equal(k).unflatten(0, (world_size(), self.ways, -1)).transpose(0, 1).flatten(1, 2)
        return keys if order is None else torch.stack([key[rows.argsort()] for key, rows in zip(keys, order)])

    def _order(self, rank_images: int) -> np.ndarray:
        """The order in which the images of all ranks go into the key network, int64 (ways, W * N).

        It is a function of the step, the micro-batch and the view alone: the same on every rank and after a resume.
        """
        images = rank_images * world_size()
        if images % self.bn_groups:
            raise UserError(
                f"A micro-batch of {images} images over all ranks does not divide into method.bn_groups "
                f"{self.bn_groups}; take a smaller --accumulate or fewer groups"
            )
        if images < 2 * self.bn_groups:
            raise UserError(self._of_one_image(images))
        place = self._step, len(self._fresh)
        return np.stack([permutation(images, _SHUFFLE, *place, way) for way in range(self.ways)])

    @torch.no_grad()
    def after_step(self, at: Moment) -> None:
        keys = torch.cat([fresh.flatten(0, 1) for fresh in self._fresh])
        place = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, place, keys)
        self.pointer.add_(len(keys)).remainder_(len(self.queue))
        self._fresh = []
        follow(self.key_encoder, self.encoder, self.momentum)
        follow(self.key_projector, self.projector, self.momentum)
        share_statistics(self)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": [*self.encoder.parameters(), *self.projector.parameters()]}
