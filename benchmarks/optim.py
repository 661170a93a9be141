"""Operations that an optimiser step dispatches, and its seconds: ours, against a loop over the tensors.

    python benchmarks/optim.py [--encoder resnet50] [--rounds 5] [--device auto]

The loop is LARS and SGD as most trainers write them: norm, rate, momentum and update of each tensor by itself. Ours are
the kernels that a GPU gets, on a CPU too, where the goal is the count and not the time: on a GPU each is a launch. Both
give the same weights.
"""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.measure import Operations, Seconds, in_turns, seconds_of
from benchmarks.report import Report, ratios, spread, turns_parser
from simsiam.distributed.runtime import running
from simsiam.methods.simsiam import SimSiam
from simsiam.optim.build import build_optimizer
from simsiam.settings.tree import Optim

RATE, MOMENTUM, DECAY, TRUST = 0.1, 0.9, 1e-4, 0.001


class Compared(NamedTuple):
    """Operations of a step of the loop and of ours, the largest difference of a weight after three, and seconds."""

    tensors: int
    loop: int
    ours: int
    apart: float
    seconds: Seconds


def main() -> None:
    options = turns_parser(__doc__, rounds=5)
    options.add_argument("--encoder", default="resnet50")
    options.add_argument("--device", default="auto")
    arguments = options.parse_args()
    with running(arguments.device) as runtime:
        found = {
            name: compare(name, loop, arguments.encoder, arguments.rounds, runtime.device, arguments.seconds / 2)
            for name, loop in (("sgd", sgd_loop), ("lars", lars_loop))
        }
        with Report(f"Optimisers: SimSiam, {arguments.encoder}", arguments, runtime.device) as report:
            header = ("optimiser", "tensors", "operations of the loop", "ours", "loop, s", "ours, s", "weights apart")
            rows = []
            for name, c in found.items():
                times = [spread(c.seconds[side]) for side in ("loop", "ours")]
                rows.append((name, c.tensors, c.loop, c.ours, *times, f"{c.apart:.1e}"))
            report.table(header, rows)
            for name, c in found.items():
                report.ratio(f"{name}: operations over the loop's", c.ours / c.loop, at_most=0.05)
                report.ratio(f"{name}: time over the loop's", ratios(c.seconds["ours"], c.seconds["loop"]))


def compare(
    name: str, loop: Callable, encoder: str, rounds: int, device: torch.device, limit: float = math.inf
) -> Compared:
    """An optimiser against its loop, from the same weights with the same gradients; turns end after `limit` seconds."""
    torch.manual_seed(0)
    ours = SimSiam(encoder).to(device)
    plain = copy.deepcopy(ours)
    optim = Optim(name=name, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST)
    optimizer, _ = build_optimizer({"encoder": list(ours.parameters())}, optim, RATE, 1, 10)
    parameters = list(plain.parameters())
    buffers = [torch.zeros_like(p) for p in parameters]
    for _ in range(3):
        for a, b in zip(ours.parameters(), parameters, strict=True):
            a.grad = torch.randn_like(a) / 100
            b.grad = a.grad.clone()
        with Operations() as of_loop:
            loop(parameters, buffers)
        with Operations() as of_ours:
            optimizer.step()
    apart = max((a - b).abs().max().item() for a, b in zip(ours.parameters(), parameters, strict=True))
    sides = {"loop": lambda: loop(parameters, buffers), "ours": optimizer.step}
    turns = {side: lambda work=work: seconds_of(work, 3, device) for side, work in sides.items()}
    seconds = in_turns(turns, rounds, limit)
    return Compared(len(buffers), of_loop.counts.total(), of_ours.counts.total(), apart, seconds)


@torch.no_grad()
def sgd_loop(parameters: list[nn.Parameter], buffers: list[torch.Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        gradient = parameter.grad.add(parameter, alpha=DECAY)
        buffer.mul_(MOMENTUM).add_(gradient)
        parameter.add_(buffer, alpha=-RATE)


@torch.no_grad()
def lars_loop(parameters: list[nn.Parameter], buffers: list[torch.Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        weight_norm, norm = parameter.norm(), parameter.grad.norm()
        gradient = parameter.grad.add(parameter, alpha=DECAY)
        if weight_norm != 0 and norm != 0:  # which on a GPU waits for it, twice
            gradient = gradient * (TRUST * weight_norm / (norm + DECAY * weight_norm + 1e-8))
        buffer.mul_(MOMENTUM).add_(gradient)
        parameter.add_(buffer, alpha=-RATE)


if __name__ == "__main__":
    main()
