"""Exact batch-norm statistics of the weights as they are, in place of a running average over weights that moved."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from simsiam.distributed.collectives import mean_over_ranks
from simsiam.models.batchnorm import ViewBatchNorm


@torch.no_grad()
def update_batchnorm_statistics(model: nn.Module, batches: Iterable[tuple[Any, ...]], num: int) -> None:
    """Sets every batch-norm's running mean and variance to those of all that it sees in `num` forwards on all ranks.

    A batch is the tuple of the model's arguments: (images, targets) for a detector, which in training mode wants both.
    The forwards are in training mode and without gradient; modes, momentum and the hooks of others stay as they are,
    `num_batches_tracked` moves on. The variance is fvcore's: that of all numbers of a channel together, from each
    batch's mean m, biased variance v and count n as (sum n (v + m^2) / sum n) - (sum n m / sum n)^2. A layer that saw
    nothing keeps its statistics. Every rank calls this with the same `num`.
    Raises ValueError where there are fewer batches than `num`.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | ViewBatchNorm)]
    layers = [layer for layer in layers if layer.running_mean is not None]
    # Rows: count, sum and sum of squares of each channel; in float64, since the variance is their difference.
    sums = {layer: torch.zeros(3, *layer.running_mean.shape, dtype=torch.float64, device=layer.running_mean.device)
            for layer in layers}  # fmt: skip
    modes = {module: module.training for module in model.modules()}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[layer] += _sums(inputs[0])

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    done = 0
    try:
        model.train()
        for batch in islice(batches, num):
            model(*batch)
            done += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if done < num:
        raise ValueError(f"exact batch-norm statistics want {num} batches, and there were {done}")
    for layer in layers:
        _set(layer, sums[layer])


def _sums(x: Tensor) -> Tensor:
    """(N, C, ...) -> count, sum and sum of squares (3, C) of each channel, in float64."""
    count = x.numel() // x.shape[1]
    if not count:
        return x.new_zeros(3, x.shape[1], dtype=torch.float64)
    var, mean = torch.var_mean(x.float(), dim=[0, *range(2, x.dim())], correction=0)
    var, mean = var.double(), mean.double()
    return count * torch.stack([torch.ones_like(mean), mean, var + mean**2])


def _set(layer: nn.Module, sums: Tensor) -> None:
    count, total, squares = mean_over_ranks(sums)
    if count[0] > 0:
        mean = total / count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((squares / count - mean**2).clamp_min(0))
