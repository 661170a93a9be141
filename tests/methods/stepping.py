"""Steps as training makes them, through `build_state` and `train_step`, on one rank or on a share of each batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simsiam.distributed.collectives import mean_over_ranks, rank, world_size
from simsiam.distributed.runtime import Runtime
from simsiam.methods.base import Method
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Run
from simsiam.training.build import build_state
from simsiam.training.state import TrainState
from simsiam.training.step import train_step

STEPS_PER_EPOCH = 4
EPOCHS = 3
IMAGES = 8


def some_batches(steps: int, *sizes: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    """For each step a tensor (V, IMAGES, 3, S, S) for each (V, S) of `sizes`, in float64."""
    generator = torch.Generator().manual_seed(5)
    return [
        tuple(torch.randn(v, IMAGES, 3, s, s, generator=generator, dtype=torch.float64) for v, s in sizes)
        for _ in range(steps)
    ]


def start(method: Method, accumulate: int = 1, **optim: object) -> TrainState:
    """The state of a run of EPOCHS times STEPS_PER_EPOCH steps of IMAGES images, on as many ranks as there are."""
    settings = Run(
        batch_size=IMAGES, accumulate=accumulate, epochs=EPOCHS, precision="fp32", optim=Optim(**{"lr": 3.2, **optim})
    )
    numbers = derive(settings, world_size(), IMAGES * STEPS_PER_EPOCH)
    method.prepare(IMAGES * STEPS_PER_EPOCH, numbers.global_batch)
    return build_state(method, settings, numbers, Runtime(rank(), world_size(), rank(), torch.device("cpu")))


def go_on(state: TrainState, batches: Sequence[tuple[Tensor, ...]]) -> list[float]:
    """A step on each batch; the mean losses over the ranks. A micro-batch has the same images whatever the ranks."""
    losses = []
    for batch in batches:
        # Views are (V, N, ...), sample ids (N,).
        parts = (t.chunk(state.accumulate * world_size(), min(1, t.dim() - 1))[rank() :: world_size()] for t in batch)
        losses.append(mean_over_ranks(train_step(state, zip(*parts)).loss).item())
    return losses


def outcome(
    build: Callable[[], Method], batches: Sequence[tuple[Tensor, ...]], **optim: object
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of the steps in float64, gradients of the last one, and all that a checkpoint would then hold.

    Here and in `resumed`, `optim` may have `accumulate` in it, which goes to `start`.
    """
    state = start(build().double(), **optim)
    losses = go_on(state, batches)
    gradients = {name: p.grad for name, p in state.module.named_parameters() if p.grad is not None}
    return losses, gradients, {name: tensor.clone() for name, tensor in state.tensors().items()}


def assert_same(one: tuple, other: tuple, atol: float) -> None:
    """Two outcomes agree in losses, gradients and state."""
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), atol=atol, rtol=0)
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def resumed(
    build: Callable[[], Method], batches: Sequence[tuple[Tensor, ...]], stop: int, **optim: object
) -> dict[str, Tensor]:
    """State after all batches, where after `stop` of them everything saved was loaded into fresh objects."""
    first = start(build(), **optim)
    go_on(first, batches[:stop])
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    fresh = start(build(), **optim)
    for parameter in fresh.module.parameters():
        parameter.data.add_(1)  # what is not loaded shows
    for name, tensor in (held := fresh.tensors()).items():
        tensor.copy_(saved[name])
    assert held.keys() == saved.keys()
    fresh.restore()
    go_on(fresh, batches[stop:])
    return fresh.tensors()
