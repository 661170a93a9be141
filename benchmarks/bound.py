"""The most views a second that memory and arithmetic allow: each kernel takes the longer of what it computes and moves.

A convolution reads and writes its input and output three times over forward and backward, batch-norm passes eight times
over its output (three forward, five backward), ReLU five times, an addition six. Fused is with ReLU and additions
inside batch-norm's passes: of theirs one remains forward, and three backward for the gradients of two branches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.models.blocks import residual_blocks

_NORM, _RELU, _POOL, _ADDITION, _FUSED_ADDITION = 8, 5, 4, 6, 4  # passes
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class Work(NamedTuple):
    """What a training step does for one view.

    Attributes:
        products: (operations, numbers moved) of each kernel of a convolution or linear layer, forward and backward.
        norms: numbers that batch-norm and pooling move, as kernels of their own.
        eager, fused: numbers that ReLU and additions move, by themselves and within the batch-norm before them.
    """

    products: list[tuple[float, float]]
    norms: float
    eager: float
    fused: float

    def operations(self) -> float:
        return sum(operations for operations, _ in self.products)

    def bytes(self, width: int, *, fused: bool) -> float:
        """That a view moves, `width` bytes a number."""
        products = sum(moved for _, moved in self.products)
        return width * (products + self.norms + (self.fused if fused else self.eager))

    def seconds(self, width: int, copy_rate: float, multiply_rate: float, *, fused: bool) -> float:
        """Of a view, at bytes and operations a second."""
        products = sum(max(n / multiply_rate, width * moved / copy_rate) for n, moved in self.products)
        return products + width * (self.norms + (self.fused if fused else self.eager)) / copy_rate


@torch.no_grad()
def count(method: SimSiam, size: int) -> Work:
    """The work of a view of `size` pixels; weights, which a large batch shares, are not counted."""
    products: list[tuple[float, float]] = []
    moved = {"norms": 0.0, "eager": 0.0, "fused": 0.0}

    def multiplied(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        each = layer.weight[0].numel()  # multiplications for one number of the output
        kernel = (2.0 * each * out.numel(), given[0].numel() + out.numel())
        products.extend([kernel] * (3 if products else 2))  # images need no gradient

    def passed(kind: str, passes: int) -> object:
        def note(_: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            moved[kind] += passes / 2 * (given[0].numel() + out.numel())

        return note

    hooks = []
    blocks = residual_blocks(method)
    for layer in method.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append((layer, multiplied))
        elif isinstance(layer, ViewBatchNorm):
            hooks.append((layer, passed("norms", _NORM)))
        elif isinstance(layer, _POOLS):
            hooks.append((layer, passed("norms", _POOL)))
        elif isinstance(layer, nn.ReLU):
            hooks.append((layer, passed("eager", _RELU)))
    for block in blocks:
        hooks += [(block, passed("eager", _ADDITION)), (block, passed("fused", _FUSED_ADDITION))]
    weight = next(method.parameters())
    image = torch.zeros(1, 3, size, size, device=weight.device)
    with _hooked(hooks), _evaluating(method):
        method.predictor(method.projector(method.encoder(image)))
    return Work(products, **moved)


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, object]]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """So that one image is enough, and no statistic moves."""
    module.eval()
    yield
    module.train()
