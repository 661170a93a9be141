"""Batch normalisation with statistics per view, over the images of all ranks, on any device.

Both views go through the network as one batch [view 1 of all images, view 2 of all images, ...]. Statistics are kept
per view, so the numbers are those of one forward per view (SimSiam, appendix A), at half the kernel launches and half
the collectives: one all-gather forward and one sum backward a layer, whatever the number of views.
torch.nn.SyncBatchNorm refuses CPU tensors and would mix the views; this works on NCCL and gloo alike, because it is
written on ATen's per-channel kernels, which exist for both.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from simsiam.distributed.collectives import add_up, gather_equal, world_size
from simsiam.gpu_kernels import gpu_kernels
from simsiam.models.fusible_batchnorm import normalise as fusible

aten = torch.ops.aten
# What CPU kernels are quick and exact with: numbers in a row, and rows, of which they add up each column one by one.
_IN_A_ROW, _MOST_ROWS, _LEAST_ROWS = 1024, 1024, 128


class NormOfViews(nn.Module):
    """What takes the place of a BatchNorm1d or BatchNorm2d: its parameters and buffers by their names, its evaluation.

    Attributes:
        views: equal consecutive parts of a training batch.
        tracks: whether running statistics move in training.
    """

    def __init__(self, like: nn.modules.batchnorm._BatchNorm, views: int) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.views = like.num_features, like.eps, like.momentum, views
        self.weight, self.bias = like.weight, like.bias
        self.register_buffer("running_mean", like.running_mean)
        self.register_buffer("running_var", like.running_var)
        self.register_buffer("num_batches_tracked", like.num_batches_tracked)
        self.after, self.tracks = after(like), True

    def evaluated(self, x: Tensor) -> Tensor:
        """x normalised by the running statistics, as torch does."""
        mean, var = self.running_mean, self.running_var
        return self.after(nn.functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps))

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Moves the running statistics towards those of each view in turn: mean and biased variance (V, C)."""
        unbiased = var * (count / (count - 1).clamp_min(1))
        for view in range(self.views):
            self.running_mean.lerp_(mean[view], self.momentum)
            self.running_var.lerp_(unbiased[view], self.momentum)
        self.num_batches_tracked.add_(self.views)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, views={self.views}"


class ViewBatchNorm(NormOfViews):
    """Drop-in for BatchNorm1d and BatchNorm2d.

    Training: the batch is `views` equal consecutive parts, each normalised by its own statistics over all ranks;
    running statistics move once per view, in order, as they would in separate forwards. Evaluation: as torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (views * N, C, ...) -> the same shape; affine and statistics in float32 whatever the dtype of x."""
        if not self.training:
            return self.evaluated(x)
        if x.shape[0] % self.views:
            raise ValueError(f"a batch of {x.shape[0]} is not {self.views} views of equal size")
        y, mean, var, count = normalise(x, self.weight, self.bias, self.views, self.eps, world_size())
        if self.tracks:
            self.track(mean, var, count)
        return self.after(y)


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, eps: float, ranks: int
) -> tuple[Tensor, ...]:
    """y of x (V * N, C, ...), and of each view mean (V, C), biased variance (V, C) and count, in float32.

    `ranks` is how many hold images of a view: all or, at 1, this one alone. Gradients go through y.
    """
    return (fusible if torch.compiler.is_compiling() else _Normalise.apply)(x, weight, bias, views, eps, ranks)


class _Normalise(torch.autograd.Function):
    """As `normalise`, of kernels that are fast by themselves."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, eps: float, ranks: int):
        x = _dense(x)
        folds = _folds(x, views)
        flat = _folded(x, folds)
        local = [_statistics(part, folds) for part in flat.chunk(views)]
        mean, var = torch.stack([m for m, _ in local]), torch.stack([v for _, v in local])
        count = mean.new_full((), x.numel() // x.shape[1] // views)  # new_tensor would wait for the GPU
        if ranks > 1:
            mean, var, count = _combine(mean, var, count, ranks)
        invstd = (var + eps).rsqrt_()
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        y = torch.empty_like(x)
        _affine(flat, *_tiled(folds, scale, shift), out=_folded(y, folds))
        ctx.save_for_backward(x, weight, mean, invstd, count)
        ctx.views, ctx.folds, ctx.ranks = views, folds, ranks
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        like, weight, mean, invstd, count = ctx.saved_tensors
        views, folds = ctx.views, ctx.folds
        x, grad = _folded(like, folds), _folded(_like(grad, like), folds)
        means, invstds = _tiled(folds, mean, invstd)
        sums = mean.new_empty(2, *mean.shape)
        for view, (part, dy) in enumerate(zip(x.chunk(views), grad.chunk(views))):
            sums[:, view] = _sums(dy, part, means[view], invstds[view], folds).view(2, -1, mean.shape[1]).sum(1)
        # DDP averages parameter gradients over ranks like any other, so they stay this rank's own.
        grad_weight, grad_bias = (None, None) if weight is None else sums.sum(1).unbind()
        if ctx.ranks > 1:
            add_up(sums)
        # dx = w invstd (dy - mean(dy) - xhat mean(dy xhat)): coefficients of dy, x and 1, each per view and channel.
        of_dy = invstd if weight is None else invstd * weight
        of_x = -of_dy * invstd * sums[0] / count
        of_1 = -of_dy * sums[1] / count - of_x * mean
        of_dy, of_x, of_1 = _tiled(folds, of_dy, of_x, of_1)
        dx = torch.empty_like(like)
        _affine(grad, of_dy, of_1, _folded(dx, folds), x, of_x)
        return dx, grad_weight, grad_bias, None, None, None


def _statistics(x: Tensor, folds: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x (N, folds * C, ...), at least in float32."""
    # A CPU's kernel answers in the type of the running statistics it is given, and at momentum 0 leaves them alone. A
    # GPU's does without, which saves two launches.
    scratch = None if x.is_cuda else x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    pieces = _pieces(x, folds)
    found = [torch.batch_norm_update_stats(piece, scratch, scratch, 0.0) for piece in pieces]
    if len(found) == 1 and folds <= 1:
        return found[0]
    if len(found) == 1:
        mean, var = (statistic.view(folds, -1) for statistic in found[0])
        return _pool(mean, var, mean.new_ones(folds, 1))
    means, variances = (torch.cat(of_pieces).view(len(found) * folds, -1) for of_pieces in zip(*found))
    counts = [len(piece) for piece in pieces for _ in range(folds)]
    return _pool(means, variances, means.new_tensor(counts).unsqueeze(1))


def _sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, folds: int) -> Tensor:
    """Sums (2, folds * C) of dy xhat and of dy, both (N, folds * C, ...), in the type of the statistics."""
    # The native kernel as a reduction: its weight gradient is the first, its bias gradient the second.
    ones, only = torch.ones_like(mean), [False, True, True]
    found = [
        torch.stack(aten.native_batch_norm_backward(dy, piece, ones, None, None, mean, invstd, True, 0.0, only)[1:])
        for piece, dy in zip(_pieces(x, folds), _pieces(dy, folds))
    ]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def _folds(x: Tensor, views: int) -> int:
    """How many rows of channels to take for one; 0 where the kernels want no rows.

    The CPU kernels go through an image whose channels lie side by side row by row, and add up each channel one by one.
    Over 65,000 numbers that costs two digits (measured: variance off by 1e-5, gradients of a small ResNet by 1e-3),
    over 1,024 nothing that float32 would not, so they get so many rows at a time, and the statistics are pooled. With
    few channels a row is short: then neighbouring rows are taken for one of more channels, ten times as fast on 16
    channels; but a row's sums should stay in the nearest cache. The kernels for other layouts add up in double
    precision, those of GPUs in a tree.
    """
    if x.is_cuda or not _rows_of_channels(x):
        return 0
    return _divisor(x.numel() // x.shape[1] // views, x.shape[1])


@functools.cache
def _divisor(numbers: int, channels: int) -> int:
    """Of the `numbers` of a channel: so that rows are long, and not so few that they take more time than they save."""
    most = min(_IN_A_ROW // channels, numbers // _LEAST_ROWS)
    return next((folds for folds in range(most, 1, -1) if numbers % folds == 0), 1)


def _folded(x: Tensor, folds: int) -> Tensor:
    """x (N, C, ...) as it lies in memory, as (..., folds * C); itself where there are no folds."""
    if folds == 0:
        return x
    return (x if x.dim() == 2 else x.permute(0, 2, 3, 1)).view(-1, folds * x.shape[1])


def _pieces(part: Tensor, folds: int) -> tuple[Tensor, ...]:
    """What is folded in pieces of no more rows than a kernel should add up; else the whole."""
    return part.chunk(-(-len(part) // _MOST_ROWS)) if folds else (part,)


def _tiled(folds: int, *per_view: Tensor) -> tuple[Tensor, ...]:
    """Each (V, C) as (V, folds * C), for what is folded."""
    return per_view if folds <= 1 else torch.stack(per_view).repeat(1, 1, folds).unbind()


def _pool(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a union from those of its parts along dim 0 (Chan, Golub and LeVeque 1979)."""
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean) ** 2) * counts).sum(0) / total


def _combine(mean: Tensor, var: Tensor, count: Tensor, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics over all ranks from those of each, in one collective."""
    packed = torch.cat([mean.flatten(), var.flatten(), count.view(1)])
    gathered = gather_equal(packed).view(ranks, -1)
    means, variances = (t.view(ranks, *mean.shape) for t in gathered[:, :-1].chunk(2, dim=1))
    counts = gathered[:, -1].view(-1, 1, 1)
    return *_pool(means, variances, counts), counts.sum()


def _rows_of_channels(x: Tensor) -> bool:
    return x.dim() == 2 or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _dense(x: Tensor) -> Tensor:
    return x if x.dim() == 4 and _rows_of_channels(x) else x.contiguous()


def _like(grad: Tensor, x: Tensor) -> Tensor:
    layout = torch.channels_last if x.dim() == 4 and _rows_of_channels(x) else torch.contiguous_format
    return grad.contiguous(memory_format=layout)


def _affine(
    x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, z: Tensor | None = None, of_z: Tensor | None = None
) -> Tensor:
    """x (V * N, C, ...) times scale plus shift, and z times of_z where there is one; coefficients float32 (V, C)."""
    if _passes_once(x, scale):
        _gpu_affine()(out, x, scale, shift, z, of_z)
        return out
    if _fuses(x):
        torch.addcmul(_channels(shift, x), _views(x, scale), _channels(scale, x), out=_views(out, scale))
        if z is not None:
            _views(out, of_z).addcmul_(_views(z, of_z), _channels(of_z, z))
        return out
    zero, one, unused = torch.zeros_like(scale[0]), torch.ones_like(scale[0]), torch.empty_like(scale[0])
    for part, target, s, t in zip(x.chunk(len(scale)), out.chunk(len(scale)), scale, shift):
        # In evaluation mode the native kernel is an affine map per channel with float32 coefficients.
        aten.native_batch_norm.out(
            part, s, t, zero, one, False, 0.0, 0.0, out=target, save_mean=unused, save_invstd=unused
        )
    if z is not None:
        out.add_(_affine(z, of_z, torch.zeros_like(of_z), out=torch.empty_like(z)))
    return out


def _passes_once(x: Tensor, per_view: Tensor) -> bool:
    """Whether there is a kernel for it that reads each number once, and writes the result once."""
    fits = x.dtype in (torch.bfloat16, torch.float16, torch.float32) and x.numel() // len(per_view) < 1 << 31
    return x.is_cuda and fits and _rows_of_channels(x) and _gpu_affine() is not None


def _gpu_affine() -> Callable[..., None] | None:
    kernels = gpu_kernels("simsiam.models.gpu_affine")
    return kernels and kernels.affine


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
    return replace_batchnorm(module, functools.partial(ViewBatchNorm, views=views))


def replace_batchnorm(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Puts what `make` makes of it in the place of every BatchNorm1d and BatchNorm2d inside; returns the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, make(child))
        else:
            replace_batchnorm(child, make)
    return module
