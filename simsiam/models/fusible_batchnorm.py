"""Per-view batch normalisation as a compiler wants it: plain operations, to be fused with what comes before and after.

The kernels of simsiam/models/batchnorm.py are the fast ones where each operation runs by itself. torch.compile sees no
way into them; of these it makes one kernel for the statistics and one for scale, shift, ReLU and addition. What crosses
the ranks is an operator of its own, so that no graph ends there.
"""

import torch
from torch import Tensor

from simsiam.distributed.collectives import sum_over_ranks


@torch.library.custom_op("simsiam::sum_over_ranks", mutates_args=())
def _sum(value: Tensor) -> Tensor:
    return sum_over_ranks(value)  # of several ranks a tensor of its own, as an operator's output must be


@_sum.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


class Normalise(torch.autograd.Function):
    """x (V, N, C, ...) -> (y, mean (V, C), biased variance (V, C), count), the last three without gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: int):
        parts = _at_least_float32(x)
        dims = _all_but_channels(parts)
        var, mean = torch.var_mean(parts, dims, correction=0)
        count = ranks * (x.numel() // mean.numel())
        if ranks > 1:
            # Ranks have equally many images: the mean of means is the mean, and its distances add to the variances.
            total = _sum(mean) / ranks
            var = _sum(var + (mean - total) ** 2) / ranks
            mean = total
        invstd = (var + eps).rsqrt()
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        y = parts * _spread(scale, parts) + _spread(shift, parts)
        if y.dtype != x.dtype:  # torch 2.11 compiles an output that `to` leaves as it is to one without gradient
            y = y.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.count, ctx.ranks = count, ranks
        counted = mean.new_full((), count)
        ctx.mark_non_differentiable(mean, var, counted)
        return y, mean, var, counted

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        x, weight, mean, invstd = ctx.saved_tensors
        dy, xhat = _at_least_float32(grad), _at_least_float32(x)
        xhat = (xhat - _spread(mean, xhat)) * _spread(invstd, xhat)
        dims = _all_but_channels(dy)
        sums = torch.stack([dy.sum(dims), (dy * xhat).sum(dims)])
        # DDP averages parameter gradients over ranks like any other, so they stay this rank's own.
        grad_bias, grad_weight = (None, None) if weight is None else sums.sum(1).unbind()
        if ctx.ranks > 1:
            sums = _sum(sums)
        of_dy = invstd if weight is None else invstd * weight
        of_one, of_xhat = sums / ctx.count
        dx = _spread(of_dy, dy) * (dy - _spread(of_one, dy) - xhat * _spread(of_xhat, dy))
        return dx.to(x.dtype), grad_weight, grad_bias, None, None


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, eps: float, ranks: int
) -> tuple[Tensor, ...]:
    """y of x (V * N, C, ...), mean (V, C), biased variance (V, C) and count; statistics in float32, over `ranks`."""
    y, *statistics = Normalise.apply(x.unflatten(0, (views, -1)), weight, bias, eps, ranks)
    return y.flatten(0, 1), *statistics


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _all_but_channels(parts: Tensor) -> list[int]:
    return [1, *range(3, parts.dim())]


def _spread(per_view: Tensor, parts: Tensor) -> Tensor:
    return per_view.view(per_view.shape[0], 1, -1, *[1] * (parts.dim() - 3))
