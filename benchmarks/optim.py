"""Operations that an optimiser step dispatches: ours, against a loop over the tensors.

    python benchmarks/optim.py [--encoder resnet50]

Counted, not timed: on a GPU each is a launch. The loop is LARS and SGD as most trainers write them: norm, rate,
momentum and update of each tensor by itself; ours are the kernels that a GPU gets. Goal for LARS: at most 5% of the
loop's operations. Both give the same weights.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simsiam.methods.simsiam import SimSiam
from simsiam.optim.build import build_optimizer
from simsiam.settings.tree import Optim

RATE, MOMENTUM, DECAY, TRUST = 0.1, 0.9, 1e-4, 0.001


class Count(TorchDispatchMode):
    """How many operations reached the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        self.operations += 1
        return operation(*given, **(named or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet50")
    arguments = parser.parse_args()
    print("| optimiser | tensors | loop | ours | ours over the loop | weights apart |\n|---|---|---|---|---|---|")
    for name, loop in (("sgd", sgd_loop), ("lars", lars_loop)):
        tensors, plain, ours, apart = compare(name, loop, arguments.encoder)
        print(f"| {name} | {tensors} | {plain} | {ours} | {ours / plain:.3f} | {apart:.1e} |")


def compare(name: str, loop: Callable, encoder: str) -> tuple[int, int, int, float]:
    """Tensors, operations of the loop and of ours in the third step, and the largest difference of a weight then."""
    torch.manual_seed(0)
    ours = SimSiam(encoder)
    plain = copy.deepcopy(ours)
    optim = Optim(name=name, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST)
    optimizer, _ = build_optimizer({"encoder": list(ours.parameters())}, optim, RATE, 1, 10)
    for group in optimizer.param_groups:
        if not optimizer.defaults.get("fused"):
            group["foreach"] = True  # by default on GPUs alone
    buffers = [torch.zeros_like(p) for p in plain.parameters()]
    counts = 0, 0
    for _ in range(3):
        for a, b in zip(ours.parameters(), plain.parameters()):
            a.grad = torch.randn_like(a) / 100
            b.grad = a.grad.clone()
        with _counting() as of_loop:
            loop(list(plain.parameters()), buffers)
        with _counting() as of_ours:
            optimizer.step()
        counts = of_loop.operations, of_ours.operations
    apart = max((a - b).abs().max().item() for a, b in zip(ours.parameters(), plain.parameters()))
    return len(buffers), *counts, apart


@torch.no_grad()
def sgd_loop(parameters: list[nn.Parameter], buffers: list[torch.Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers):
        gradient = parameter.grad.add(parameter, alpha=DECAY)
        buffer.mul_(MOMENTUM).add_(gradient)
        parameter.add_(buffer, alpha=-RATE)


@torch.no_grad()
def lars_loop(parameters: list[nn.Parameter], buffers: list[torch.Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers):
        gradient = parameter.grad.add(parameter, alpha=DECAY)
        weight_norm, norm = parameter.norm(), parameter.grad.norm()
        trust = TRUST * weight_norm / (norm + DECAY * weight_norm + 1e-8)
        trust = torch.where((weight_norm > 0) & (norm > 0), trust, torch.ones_like(trust))
        buffer.mul_(MOMENTUM).add_(gradient * trust)
        parameter.add_(buffer, alpha=-RATE)


@contextmanager
def _counting() -> Iterator[Count]:
    with Count() as count:
        yield count


if __name__ == "__main__":
    main()
