"""Batch normalisation with statistics per view, over the images of all ranks, on any device.

Both views go through the network as one batch [view 1 of all images, view 2 of all images, ...]. Statistics are kept
per view, so the numbers are those of one forward per view (SimSiam, appendix A), at half the kernel launches and half
the collectives: one all-gather forward and one all-reduce backward a layer, whatever the number of views.
torch.nn.SyncBatchNorm refuses CPU tensors and would mix the views; this works on NCCL and gloo alike, because it is
written on ATen's per-channel kernels, which exist for both.
"""

import torch
from torch import Tensor, nn

from simsiam.distributed.collectives import add_up, gather_equal, world_size
from simsiam.models.fusible_batchnorm import normalise as fusible

aten = torch.ops.aten
_PIECE = 1024  # numbers a channel that a CPU kernel may add up in a row


class ViewBatchNorm(nn.Module):
    """Drop-in for BatchNorm1d and BatchNorm2d, with the same parameter and buffer names.

    Training: the batch is `views` equal consecutive parts, each normalised by its own statistics over all ranks;
    running statistics move once per view, in order, as they would in separate forwards. Evaluation: as torch.
    """

    def __init__(self, like: nn.modules.batchnorm._BatchNorm, views: int) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.views = like.num_features, like.eps, like.momentum, views
        self.weight, self.bias = like.weight, like.bias
        self.register_buffer("running_mean", like.running_mean)
        self.register_buffer("running_var", like.running_var)
        self.register_buffer("num_batches_tracked", like.num_batches_tracked)
        self.after, self.tracks = after(like), True

    def forward(self, x: Tensor) -> Tensor:
        """x (views * N, C, ...) -> the same shape; affine and statistics in float32 whatever the dtype of x."""
        if not self.training:
            y = nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
            return self.after(y)
        if x.shape[0] % self.views:
            raise ValueError(f"a batch of {x.shape[0]} is not {self.views} views of equal size")
        normalise = fusible if torch.compiler.is_compiling() else _Normalise.apply
        y, mean, var, count = normalise(x, self.weight, self.bias, self.views, self.eps)
        if self.tracks:
            self._track(mean, var, count)
        return self.after(y)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        unbiased = var * (count / (count - 1).clamp_min(1))
        for view in range(self.views):
            self.running_mean.lerp_(mean[view], self.momentum)
            self.running_var.lerp_(unbiased[view], self.momentum)
        self.num_batches_tracked.add_(self.views)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, views={self.views}"


class _Normalise(torch.autograd.Function):
    """x -> (y, mean (V, C), biased variance (V, C), count), the last three without gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, eps: float):
        x = _dense(x)
        local = [_statistics(part) for part in x.chunk(views)]
        mean, var = torch.stack([m for m, _ in local]), torch.stack([v for _, v in local])
        count = mean.new_full((), x.numel() // x.shape[1] // views)  # new_tensor would wait for the GPU
        if world_size() > 1:
            mean, var, count = _combine(mean, var, count)
        invstd = (var + eps).rsqrt_()
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        y = _affine(x, scale, shift)
        ctx.save_for_backward(x, weight, mean, invstd, count)
        ctx.views, ctx.eps = views, eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        x, weight, mean, invstd, count = ctx.saved_tensors
        grad = _like(grad, x)
        # The native kernel as a reduction: its weight gradient is sum(dy xhat), its bias gradient sum(dy).
        ones, sums = mean.new_ones(mean.shape[1]), mean.new_empty(2, *mean.shape)
        for view, (part, dy) in enumerate(zip(x.chunk(ctx.views), grad.chunk(ctx.views))):
            pieces = [
                torch.stack(
                    aten.native_batch_norm_backward(
                        g, p, ones, None, None, mean[view], invstd[view], True, ctx.eps, [False, True, True]
                    )[1:]
                )
                for p, g in zip(_pieces(part), _pieces(dy))
            ]
            sums[:, view] = torch.stack(pieces).sum(0)
        # DDP averages parameter gradients over ranks like any other, so they stay this rank's own.
        grad_weight, grad_bias = (None, None) if weight is None else sums.sum(1).unbind()
        if world_size() > 1:
            add_up(sums)
        # dx = w invstd (dy - mean(dy) - xhat mean(dy xhat)): coefficients of dy, x and 1, each per view and channel.
        of_dy = invstd if weight is None else invstd * weight
        of_x = -of_dy * invstd * sums[0] / count
        dx = _affine(grad, of_dy, -of_dy * sums[1] / count - of_x * mean)
        if _fuses(x):
            _views(dx, of_x).addcmul_(_views(x, of_x), _channels(of_x, x))
        else:
            dx.add_(_affine(x, of_x, torch.zeros_like(of_x)))
        return dx, grad_weight, grad_bias, None, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x (N, C, ...), at least in float32."""
    # The kernel answers in the type of the running statistics it is given, and at momentum 0 leaves them alone.
    scratch = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    pieces = _pieces(x)
    parts = [torch.batch_norm_update_stats(piece, scratch, scratch, 0.0) for piece in pieces]
    if len(parts) == 1:
        return parts[0]
    means, variances = (torch.stack(stats) for stats in zip(*parts))
    counts = means.new_tensor([len(piece) for piece in pieces]).view(-1, 1)
    return _pool(means, variances, counts)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """x (N, C, ...) in parts of few enough numbers a channel for the CPU kernels, which add them up one by one.

    Over a whole batch of 65,000 numbers a channel that costs two digits (measured: variance off by 1e-5, gradients of a
    small ResNet by 1e-3); over 1,024 it costs nothing that float32 would not. The GPU kernels add in a tree.
    """
    if x.is_cuda:
        return (x,)
    return x.split(max(1, _PIECE // x[0, 0].numel()))


def _pool(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a union from those of its parts along dim 0 (Chan, Golub and LeVeque 1979)."""
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean) ** 2) * counts).sum(0) / total


def _combine(mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics over all ranks from those of each, in one collective."""
    packed = torch.cat([mean.flatten(), var.flatten(), count.view(1)])
    gathered = gather_equal(packed).view(world_size(), -1)
    means, variances = (t.view(world_size(), *mean.shape) for t in gathered[:, :-1].chunk(2, dim=1))
    counts = gathered[:, -1].view(-1, 1, 1)
    return *_pool(means, variances, counts), counts.sum()


def _dense(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _like(grad: Tensor, x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return grad.contiguous(memory_format=torch.channels_last)
    return grad.contiguous()


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (V * N, C, ...) times scale plus shift, both float32 (V, C), computed in float32 and rounded once."""
    y = torch.empty_like(x)
    if _fuses(x):
        torch.addcmul(_channels(shift, x), _views(x, scale), _channels(scale, x), out=_views(y, scale))
        return y
    zero, one = torch.zeros_like(scale[0]), torch.ones_like(scale[0])
    for part, out, s, t in zip(x.chunk(len(scale)), y.chunk(len(scale)), scale, shift):
        # In evaluation mode the native kernel is an affine map per channel with float32 coefficients.
        out.copy_(aten.native_batch_norm(part, s, t, zero, one, False, 0.0, 0.0)[0])
    return y


def _fuses(x: Tensor) -> bool:
    """Whether one pointwise kernel can mix x with float32 coefficients; on CPU 16-bit it would copy x to float32."""
    return x.is_cuda or x.dtype == torch.float32 or x.dtype == torch.float64


def _views(x: Tensor, per_view: Tensor) -> Tensor:
    return x.view(len(per_view), -1, *x.shape[1:])


def _channels(per_view: Tensor, x: Tensor) -> Tensor:
    return per_view.view(len(per_view), 1, -1, *[1] * (x.dim() - 2))


def after(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """What a batch-norm does beside normalising: timm's BatchNormAct2d has drop and activation within."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def per_view_batchnorm(module: nn.Module, views: int) -> nn.Module:
    """Replaces every BatchNorm1d and BatchNorm2d inside `module`, in place; returns the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, ViewBatchNorm(child, views))
        else:
            per_view_batchnorm(child, views)
    return module
