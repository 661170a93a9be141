"""Batch normalisation within groups of images: what per-GPU statistics are on so many GPUs, on any number of ranks."""

from functools import partial

from torch import Tensor, nn

from simsiam.distributed.collectives import share, world_size
from simsiam.models.batchnorm import NormOfViews, normalise, replace_batchnorm


class SplitBatchNorm(NormOfViews):
    """Drop-in for BatchNorm1d and BatchNorm2d.

    Training: the batch is `views` equal consecutive parts; the images of a part, over all ranks in rank order, are cut
    into `groups` equal runs, each normalised by its own statistics. A rank holds whole groups, so nothing crosses the
    ranks. Running statistics move once per view towards the mean over groups, of this rank's groups until
    `share_statistics` is called. Evaluation: as torch.
    """

    def __init__(self, like: nn.modules.batchnorm._BatchNorm, views: int, groups: int) -> None:
        super().__init__(like, views)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """x (views * N, C, ...) -> the same shape."""
        if not self.training:
            return self.evaluated(x)
        here = self.groups // world_size()
        if here * world_size() != self.groups or x.shape[0] % (self.views * here):
            raise ValueError(
                f"a batch of {x.shape[0]} on {world_size()} ranks is not {self.views} views of {self.groups} groups"
            )
        y, mean, var, count = normalise(x, self.weight, self.bias, self.views * here, self.eps, ranks=1)
        if self.tracks:
            self.track(*(of_groups.unflatten(0, (self.views, here)).mean(1) for of_groups in (mean, var)), count)
        return self.after(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def split_batchnorm(module: nn.Module, views: int, groups: int) -> nn.Module:
    """Replaces every BatchNorm1d and BatchNorm2d inside `module`, in place; returns the module."""
    return replace_batchnorm(module, partial(SplitBatchNorm, views=views, groups=groups))


def share_statistics(module: nn.Module) -> None:
    """Makes the running statistics inside `module` the same on all ranks, those of one rank with all groups.

    Their rule is linear, so the mean over ranks of what each has tracked is exact.
    """
    layers = [m for m in module.modules() if isinstance(m, SplitBatchNorm)]
    share([buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)])
