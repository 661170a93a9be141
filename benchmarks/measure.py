"""What the benchmarks share: turns in one process, what the machine can do, and counts of what is dispatched."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simsiam.distributed.collectives import rank

Seconds = dict[str, list[float]]
"""Of each side, in each round."""


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int, seconds: float = math.inf) -> Seconds:
    """What each side says it took, round after round, so that a machine that slows down slows all of them.

    Every other round goes backwards; one before the first warms up. After the first, none begins that would end later
    than `seconds` from now if it took as long as the one before it. Each figure goes to stderr as it is known, so that
    what is killed has left them; round 0 is the warm-up.
    """
    taken: Seconds = {name: [] for name in sides}
    began = last = time.perf_counter()
    for number in range(1 + rounds):
        now = time.perf_counter()
        if number > 1 and now + (now - last) > began + seconds:
            break
        last = now
        for name in list(sides) if number % 2 else reversed(sides):
            figure = sides[name]()
            if rank() == 0:
                print(f"round {number}, {name}: {figure:.4g}", file=sys.stderr, flush=True)
            if number:
                taken[name].append(figure)
    return taken


def seconds_of(work: Callable[[], object], times: int, device: torch.device, untimed: int = 0) -> float:
    """Mean seconds of a call, of `times` after `untimed` ones, until the device has done them all."""
    for _ in range(untimed):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes, together; the best of a few, far beyond the caches."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 25), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source), 1, device, 1) for _ in range(5))


def multiply_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, multiplications and additions both counted; the best of a few.

    On a GPU those of float32 are TF32, as its convolutions are.
    """
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * side**3 / min(seconds_of(lambda: a @ b, 1, device, 1) for _ in range(5))
    finally:
        products.allow_tf32 = before


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher while it is entered, and the bytes that collectives give away.

    Attributes:
        counts: operator -> calls.
        sent: the collective's name -> bytes this rank hands in, one entry a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.sent: dict[str, list[int]] = {}

    @property
    def collectives(self) -> int:
        return sum(map(len, self.sent.values()))

    @property
    def bytes(self) -> int:
        return sum(map(sum, self.sent.values()))

    def __torch_dispatch__(self, operator: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        name = str(operator)
        self.counts[name] += 1
        if operator.namespace == "c10d":
            # c10d::_allgather_base_(output, input, ...) and c10d::allreduce_(tensors, ...)
            handed = [given[1]] if "gather" in name else given[0]
            tensors = handed if isinstance(handed, list | tuple) else [handed]
            self.sent.setdefault(name, []).append(sum(t.nbytes for t in tensors if isinstance(t, Tensor)))
        return operator(*given, **(named or {}))
