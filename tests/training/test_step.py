"""One training step: what moves, and what does not move when something is not finite."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from simsiam.distributed.runtime import Runtime
from simsiam.settings.derive import derive
from simsiam.settings.tree import Health, Optim, Run
from simsiam.training.build import build_state
from simsiam.training.finite import FiniteGuard
from simsiam.training.health import effective_rank, judge, spread
from simsiam.training.state import TrainState
from simsiam.training.step import train_step


class Loss(NamedTuple):
    loss: Tensor


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Loss:
        return Loss(self.layer(x).float().square().mean())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.parameters())}

    def after_step(self) -> None:
        pass


def build(accumulate: int = 1, **optim: object) -> TrainState:
    settings = Run(batch_size=8, accumulate=accumulate, epochs=2, precision="fp32", optim=Optim(**optim))
    runtime = Runtime(0, 1, 0, torch.device("cpu"))
    return build_state(Line(), settings, derive(settings, 1, 80), runtime)


def snapshot(state: TrainState) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in state.tensors().items() if key.startswith(("model", "optimizer"))}


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_moves_on_a_loss_that_is_not_finite(name: str, poison: float) -> None:
    state, guard, x = build(name=name), FiniteGuard(torch.device("cpu")), torch.randn(8, 3)
    for _ in range(2):
        guard.watch(state.step, train_step(state, [(x,)]).finite)
    before = snapshot(state)
    x[3, 1] = poison
    guard.watch(7, train_step(state, [(x,)]).finite)
    guard.watch(8, train_step(state, [(x,)]).finite)
    assert all(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())
    assert guard.first_bad() == 7


def test_a_finite_step_moves_parameters_and_is_not_reported() -> None:
    state, guard = build(), FiniteGuard(torch.device("cpu"))
    before = snapshot(state)
    guard.watch(1, train_step(state, [(torch.randn(8, 3),)]).finite)
    assert not any(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())
    assert guard.first_bad() is None


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts, x = build(), build(accumulate=4), torch.randn(8, 3)
    a, b = train_step(whole, [(x,)]), train_step(parts, [(piece,) for piece in x.chunk(4)])
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(a.grad_norm, b.grad_norm)
    torch.testing.assert_close(whole.module.layer.weight, parts.module.layer.weight)


def test_spread_and_rank_tell_an_even_spread_from_a_point_and_a_line() -> None:
    torch.manual_seed(0)
    even, point = torch.randn(512, 64), torch.randn(1, 64).expand(512, 64)
    line = torch.randn(512, 1) * torch.randn(1, 64)
    assert spread(even).item() == pytest.approx(1, abs=0.02)
    assert spread(point).item() < 1e-3
    assert effective_rank(even).item() > 55
    assert effective_rank(line).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.randn(512, 5) @ torch.randn(5, 64)).item() == pytest.approx(5, abs=1)
    health = Health()
    assert judge(1.0, 50, health).state == "ok"
    assert judge(1.0, 1.5, health).state == "warn"
    assert judge(0.3, 50, health).state == "warn"
    assert judge(0.01, 50, health).state == "collapsed"
