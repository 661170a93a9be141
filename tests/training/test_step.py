"""One training step: what moves, and what does not move when something is not finite."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.distributed.runtime import Runtime
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Run
from simsiam.training.build import build_state
from simsiam.training.finite import FiniteGuard
from simsiam.training.module import Moment, Trainable
from simsiam.training.state import TrainState
from simsiam.training.step import StepResult, train_step
from tests.ranks import run_ranks


class Loss(NamedTuple):
    loss: Tensor


class Line(Trainable):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Loss:
        return Loss(self.layer(x).float().square().mean())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.parameters())}


def build(accumulate: int = 1, precision: str = "fp32", module: nn.Module | None = None, **optim: object) -> TrainState:
    settings = Run(batch_size=8, accumulate=accumulate, epochs=2, precision=precision, optim=Optim(**optim))
    runtime = Runtime(0, 1, 0, torch.device("cpu"))
    return build_state(module or Line(), settings, derive(settings, 1, 80), runtime)


def snapshot(state: TrainState) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in state.tensors().items() if key.startswith(("model", "optimizer"))}


def watch(guard: FiniteGuard, step: int, result: StepResult) -> None:
    guard.watch(step, result.finite, result.own_loss, result.own_gradients)


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_moves_on_a_loss_that_is_not_finite(name: str, poison: float) -> None:
    state, guard, x = build(name=name), FiniteGuard(torch.device("cpu")), torch.randn(8, 3)
    for _ in range(2):
        watch(guard, state.step, train_step(state, [(x,)]))
    before = snapshot(state)
    x[3, 1] = poison
    watch(guard, 7, train_step(state, [(x,)]))
    watch(guard, 8, train_step(state, [(x,)]))
    assert all(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())
    assert guard.first_bad() == (7, [0])


def test_a_finite_step_moves_parameters_and_is_not_reported() -> None:
    state, guard = build(), FiniteGuard(torch.device("cpu"))
    before = snapshot(state)
    watch(guard, 1, train_step(state, [(torch.randn(8, 3),)]))
    assert not any(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())
    assert guard.first_bad() is None


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts, x = build(), build(accumulate=4), torch.randn(8, 3)
    a, b = train_step(whole, [(x,)]), train_step(parts, [(piece,) for piece in x.chunk(4)])
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(a.grad_norm, b.grad_norm)
    torch.testing.assert_close(whole.module.layer.weight, parts.module.layer.weight)


def test_accumulation_is_one_optimiser_step_and_one_after_step() -> None:
    state, calls = build(accumulate=4), []
    state.optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    state.module.after_step = lambda at: calls.append("after")
    for _ in range(3):
        train_step(state, [(torch.randn(2, 3),)] * 4)
    assert calls == ["step", "after"] * 3
    assert state.step == 3


class TwoGroups(Line):
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": [self.layer.weight], "predictor": [self.layer.bias]}


def test_each_group_moves_at_its_own_rate_of_the_step() -> None:
    # 10 steps an epoch, two epochs, peak 0.05 x 8 / 256.
    state, peak = build(module=TwoGroups(), momentum=0.0, weight_decay=0.0, per="step"), 0.05 * 8 / 256
    for step in range(20):
        weight, bias = (p.detach().clone() for p in state.module.parameters())
        train_step(state, [(torch.randn(8, 3),)])
        rates = [peak * (1 + math.cos(math.pi * step / 20)) / 2, peak]
        assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx(rates)
        for parameter, before, rate in zip(state.module.parameters(), (weight, bias), rates):
            torch.testing.assert_close(parameter.detach(), before - rate * parameter.grad)


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_fp16_overflow_skips_the_step_and_halves_the_scale(name: str) -> None:
    state, x = build(precision="fp16", name=name), torch.randn(8, 3) / 100
    state.precision.scaler.load_state_dict({**state.precision.scaler.state_dict(), "scale": 4096.0})
    assert train_step(state, [(x,)]).finite
    assert state.precision.scaler.get_scale() == 4096
    before = snapshot(state)
    result = train_step(state, [(x * 1e5,)])  # the loss is finite, its gradient times 4096 no float16
    assert result.loss.isfinite()
    guard = FiniteGuard(torch.device("cpu"))
    watch(guard, 1, result)
    assert guard.first_bad() is None  # a matter for the scaler, not for the end of the run
    assert all(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())
    assert state.precision.scaler.get_scale() == 2048
    train_step(state, [(x,)])
    assert not any(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_fp16_gradients_that_no_scale_makes_finite_are_reported(name: str) -> None:
    state = build(precision="fp16", name=name)
    state.module.layer.weight.register_hook(lambda gradient: gradient * torch.nan)
    guard = FiniteGuard(torch.device("cpu"))
    for step in range(1, 40):
        watch(guard, step, train_step(state, [(torch.randn(8, 3) / 100,)]))
    assert guard.first_bad().step == 31  # the scale began at 2 ** 16 and was halved thirty times before


def test_fp16_gradients_are_unscaled_before_they_are_used() -> None:
    half, full = (build(precision=precision, momentum=0.0) for precision in ("fp16", "fp32"))
    half.precision.scaler.load_state_dict({**half.precision.scaler.state_dict(), "scale": 512.0})
    x = torch.randn(8, 3)
    a, b = train_step(half, [(x,)]), train_step(full, [(x,)])
    assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-2)
    torch.testing.assert_close(half.module.layer.weight, full.module.layer.weight, atol=1e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_under_fp16_is_reported() -> None:
    state = build(precision="fp16")
    before = snapshot(state)
    assert not train_step(state, [(torch.full((8, 3), float("nan")),)]).finite
    assert all(torch.equal(before[key], tensor) for key, tensor in snapshot(state).items())


class Typed(Line):
    """Notes the type it computes in."""

    def forward(self, x: Tensor) -> Loss:
        y = self.layer(x)
        self.dtype = y.dtype
        return Loss(y.float().square().mean())


def test_bf16_stays_close_to_fp32_and_keeps_float32_parameters() -> None:
    x, losses = torch.linspace(-2, 2, 24).view(8, 3), {}
    for precision in ("fp32", "bf16"):
        state = build(precision=precision, module=Typed())
        losses[precision] = [train_step(state, [(x,)]).loss.item() for _ in range(10)]
        assert {p.dtype for p in state.module.parameters()} == {torch.float32}
    assert state.module.dtype == torch.bfloat16
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


def step_on_a_rank(reduce_dtype: str, poisoned: bool) -> tuple[Tensor, Tensor, tuple]:
    """One step of Line on images of this rank's own; their gradient, what the optimiser saw, and the first bad step."""
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    settings = Run(batch_size=16, epochs=2, precision="fp32", reduce_dtype=reduce_dtype)
    state, guard = build_state(Line(), settings, derive(settings, 2, 80), runtime), FiniteGuard(runtime.device)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(runtime.rank))
    alone = Line()
    alone(x).loss.backward()
    if poisoned and runtime.rank == 1:
        state.module.layer.weight.register_hook(lambda gradient: gradient * torch.nan)
    watch(guard, 3, train_step(state, [(x,)]))
    return alone.layer.weight.grad, state.module.layer.weight.grad, guard.first_bad()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ranks_average_gradients_in_the_type_that_is_asked_for(dtype: str) -> None:
    (own, seen, bad), (others, seen_there, _) = run_ranks(2, step_on_a_rank, dtype, False)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert torch.equal(seen, (own.to(kind) / 2 + others.to(kind) / 2).float())
    assert torch.equal(seen, seen_there)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, (own + others) / 2) == (dtype == "fp32")
    assert bad is None


def test_a_rank_whose_gradient_is_not_finite_is_named_also_where_it_is_sent_in_bf16() -> None:
    assert [bad for _, _, bad in run_ranks(2, step_on_a_rank, "bf16", True)] == [(3, [1])] * 2


class Spoilt(Line):
    """Its loss is not finite on the last rank at the steps of `bad`; its gradients always are."""

    bad = (1,)

    def forward(self, x: Tensor) -> Loss:
        loss = super().forward(x).loss
        self.step = getattr(self, "step", -1) + 1
        spoils = self.step in self.bad and dist.get_rank() == dist.get_world_size() - 1
        return Loss(loss + torch.inf if spoils else loss)


def three_steps_on_a_rank() -> tuple[list[bool], list[bool], tuple, list[Tensor]]:
    """Three steps of Spoilt: which were finite, which gradients of this rank were, the first bad one, weights."""
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    settings = Run(batch_size=16, epochs=2, precision="fp32")
    state, guard = build_state(Spoilt(), settings, derive(settings, 2, 80), runtime), FiniteGuard(runtime.device)
    weights, results = [], []
    for _ in range(3):
        results.append(train_step(state, [(torch.ones(8, 3),)]))
        watch(guard, state.step, results[-1])
        weights.append(state.module.layer.weight.detach().clone())
    flags = [[bool(getattr(r, name)) for r in results] for name in ("finite", "own_gradients")]
    return *flags, guard.first_bad(), weights


def test_a_loss_that_is_not_finite_on_one_rank_moves_no_rank_though_all_gradients_are_finite() -> None:
    for rank, (finite, own, bad, weights) in enumerate(run_ranks(2, three_steps_on_a_rank)):
        assert finite == [True, False, True]
        assert own == [True, rank == 0, True]  # what was seen in one step is forgotten in the next
        assert bad == (2, [1])
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])


def first_bad_on_a_rank() -> tuple:
    """Rank 0's gradients and rank 1's loss, and so its gradients, are not finite in the same step."""
    guard, rank = FiniteGuard(torch.device("cpu")), dist.get_rank()
    guard.watch(5, torch.tensor(False), torch.tensor(rank != 1), torch.tensor(False))
    return guard.first_bad()


def test_a_rank_whose_loss_was_bad_is_named_before_those_that_its_gradients_reached() -> None:
    assert run_ranks(2, first_bad_on_a_rank) == [(5, [1])] * 2


def averages_on_a_rank(accumulate: int) -> int:
    """How often gradients crossed the ranks in two steps."""
    import simsiam.training.finite as finite

    crossed, average = [], finite.allreduce_hook
    finite.allreduce_hook = lambda *a: (crossed.append(1), average(*a))[1]
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    settings = Run(batch_size=16, epochs=2, precision="fp32", accumulate=accumulate)
    state = build_state(Line(), settings, derive(settings, 2, 80), runtime)
    for _ in range(2):
        train_step(state, [(torch.ones(8 // accumulate, 3),)] * accumulate)
    return len(crossed)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_cross_the_ranks_once_a_step(accumulate: int) -> None:
    assert run_ranks(2, averages_on_a_rank, accumulate) == [2, 2]


def test_a_group_that_does_not_move_keeps_weight_and_momentum() -> None:
    class Two(Line):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Loss:
            return Loss(self.layer(x).square().mean() + self.other(x).square().mean())

        def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
            return {"encoder": list(self.layer.parameters()), "other": list(self.other.parameters())}

        def moving_groups(self, at: Moment) -> set[str]:
            return {"other"} if at.step % 2 else {"encoder", "other"}

    state, x = build(module=Two(), exclude_1d=True), torch.randn(8, 3)
    train_step(state, [(x,)])
    before = snapshot(state)
    train_step(state, [(x,)])
    moved = {key for key, tensor in snapshot(state).items() if not torch.equal(before[key], tensor)}
    assert moved == {key for key in before if ".other." in key}
    assert len(moved) == 4
    train_step(state, [(x,)])
    assert not torch.equal(before["model.layer.weight"], snapshot(state)["model.layer.weight"])
