"""Where the seconds of a training step go: data, forward, backward, collectives, optimiser, and what lies between."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from benchmarks.measure import wait
from simsiam.distributed.waiting import Instant, instant, waiting
from simsiam.training.state import TrainState

PARTS = ("data", "forward", "backward", "between", "optimiser", "after")


def profile(
    state: TrainState, next_views: Callable[[], Any], step: Callable[[Any], Any], steps: int
) -> dict[str, float]:
    """Median seconds of each part, by the device's own clock, and `collectives`, which lie within the others.

    `between` is from the backward pass to the optimiser: norm of the gradients, whether all is finite; `data` is until
    the views are there, `after` from the optimiser to the end of the step.

    Args:
        next_views: makes a batch; step: trains on it.
    """
    device = state.precision.device
    rounds: list[list[Instant]] = []
    collectives = []
    with _marks(state, device) as marks:
        for _ in range(steps):
            marks.clear()
            waited = waiting.seconds()
            begin = instant(device)
            views = next_views()
            ready = instant(device)
            step(views)
            rounds.append([begin, ready, *marks, instant(device)])
            wait(device)
            collectives.append(waiting.seconds() - waited)
    # begin, views ready, forward begins and ends, backward ends, optimiser begins and ends, end of the step
    spans = [[_between(a, b) for a, b in pairwise(one)] for one in rounds]
    data, before, forward, backward, between, optimiser, after = map(statistics.median, zip(*spans))
    values = (data, forward, backward, between, optimiser, before + after)
    return {**dict(zip(PARTS, values, strict=True)), "collectives": statistics.median(collectives)}


@contextmanager
def _marks(state: TrainState, device: torch.device) -> Iterator[list[Instant]]:
    """Instants of a step of one micro-batch: forward begins and ends, backward ends, optimiser begins and ends."""
    marks: list[Instant] = []

    def note(*_: object, **__: object) -> None:
        marks.append(instant(device))

    plain = torch.autograd.backward

    def backward(*given: object, **named: object) -> None:
        plain(*given, **named)
        note()

    hooks = [
        state.model.register_forward_pre_hook(note),
        state.model.register_forward_hook(note),
        state.optimizer.register_step_pre_hook(note),
        state.optimizer.register_step_post_hook(note),
    ]
    torch.autograd.backward = backward
    try:
        yield marks
    finally:
        torch.autograd.backward = plain
        for hook in hooks:
            hook.remove()


def _between(begin: Instant, end: Instant) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
