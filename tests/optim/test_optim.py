"""Rates are the official schedule's, LARS is apex LARC's rule."""

import math

import pytest
import torch
from torch import Tensor, nn

from simsiam.optim.build import build_optimizer
from simsiam.optim.schedule import Schedule
from simsiam.settings.tree import Optim


def test_both_groups_follow_the_official_schedule() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    _, (encoder, predictor) = build_optimizer(
        {"encoder": [weight], "predictor": [nn.Parameter(torch.ones(2))]}, Optim(), 0.1, 100, 7
    )
    for step in range(700):
        assert encoder.at(step) == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * (step // 7) / 100)))
        assert predictor.at(step) == 0.1
    assert encoder.at(699) == pytest.approx(2.467e-4 * 0.1, rel=1e-3)


def test_warmup_rises_every_step_and_ends_at_the_peak() -> None:
    schedule = Schedule(1.0, epochs=10, steps_per_epoch=5, warmup_epochs=2)
    assert [schedule.at(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule.at(10) == 1.0
    assert schedule.at(49) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.mark.parametrize("shape", ["cosine", "steps", "constant"])
def test_every_shape_warms_up_over_fractions_of_an_epoch_and_not_beyond_the_peak(shape: str) -> None:
    schedule = Schedule(1.0, 10, 10, shape, warmup_epochs=0.25, milestones=(5,))
    assert [schedule.at(step) for step in range(4)] == pytest.approx([0.4, 0.8, 1.0, 1.0])
    # Until the next epoch begins, a cosine that is still within an epoch has not begun to fall.
    assert Schedule(1.0, 10, 10, shape, warmup_epochs=1.5, milestones=(5,)).at(16) == 1.0


def test_a_constant_predictor_does_not_warm_up() -> None:
    groups = {name: [nn.Parameter(torch.ones(2, 2))] for name in ("encoder", "predictor")}
    _, (encoder, predictor) = build_optimizer(groups, Optim(warmup_epochs=2), 0.1, 10, 5)
    assert [encoder.at(0), predictor.at(0)] == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize("per_epoch", [True, False])
def test_beyond_its_end_a_cosine_stays_where_it_ended(per_epoch: bool) -> None:
    assert Schedule(1.0, 2, 10, per_epoch=per_epoch, final=0.25).at(27) == 0.25


def test_steps_and_per_step_cosine() -> None:
    steps = Schedule(1.0, 20, 10, "steps", milestones=(12, 16), decay=0.2)
    assert [steps.at(s) for s in (119, 120, 159, 160)] == pytest.approx([1, 0.2, 0.2, 0.04])
    assert Schedule(1.0, 2, 10, per_epoch=False).at(5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_a_cosine_may_end_above_zero() -> None:
    groups = {"encoder": [nn.Parameter(torch.ones(2, 2))], "head": [nn.Parameter(torch.ones(2))]}
    optim = Optim(lr=0.5, final_lr=0.1, per="step")
    _, (encoder, head) = build_optimizer(groups, optim, 1.0, 10, 10, {"head": 3.0})
    share = 0.5 * (1 + math.cos(math.pi * 0.25))
    assert [encoder.at(step) for step in (0, 25, 100)] == pytest.approx([1.0, 0.2 + 0.8 * share, 0.2])
    assert [head.at(step) for step in (0, 100)] == pytest.approx([3.0, 0.2])


def test_adamw_takes_weights_down_by_themselves() -> None:
    weight = nn.Parameter(torch.full((2, 2), 3.0))
    optimizer, _ = build_optimizer({"encoder": [weight]}, Optim(name="adamw", weight_decay=0.1), 0.5, 1, 1)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 3.0 * (1 - 0.5 * 0.1)))


def larc_by_hand(w: Tensor, buffer: Tensor, g: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    """apex LARC, clip False, trust 0.001, around SGD with momentum 0.9."""
    if w.norm() and g.norm():
        g = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8) * (g + decay * w)
    buffer = 0.9 * buffer + g
    return w - lr * buffer, buffer


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_is_larc_with_a_zero_bias_left_alone_at_first(decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.zeros(4)]
    parameters = [nn.Parameter(t.clone()) for t in start]
    optimizer, _ = build_optimizer({"head": parameters}, Optim(name="lars", weight_decay=decay), 1.6, 90, 10)
    expected = [(t.clone(), torch.zeros_like(t)) for t in start]
    for _ in range(3):
        gradients = [torch.randn_like(t) for t in start]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        optimizer.step()
        expected = [larc_by_hand(w, b, g, 1.6, decay) for (w, b), g in zip(expected, gradients)]
        for parameter, (w, _) in zip(parameters, expected):
            torch.testing.assert_close(parameter.data, w, atol=1e-6, rtol=1e-5)


def test_excluded_tensors_are_neither_decayed_nor_adapted() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optim = Optim(name="lars", exclude_1d=True, weight_decay=0.1, momentum=0.0)
    optimizer, _ = build_optimizer({"encoder": [weight, bias]}, optim, 1.0, 1, 1)
    weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(bias.data, torch.zeros(2))
    torch.testing.assert_close(weight.data, torch.full((2, 2), 1 - 0.001 * 2 / (2 + 0.1 * 2) * 1.1))


def test_the_trust_coefficient_is_the_settings() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optim = Optim(name="lars", trust_coefficient=0.02, weight_decay=0.0, momentum=0.0)
    optimizer, _ = build_optimizer({"encoder": [weight]}, optim, 1.0, 1, 1)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.98))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_one_kernel_updates_all_and_takes_the_finite_flag_on_the_device(name: str) -> None:
    optimizer, _ = build_optimizer({"encoder": [nn.Parameter(torch.ones(2, 2))]}, Optim(name=name), 1.0, 1, 1)
    assert optimizer.defaults["fused"]


def test_sgd_is_torchs_from_the_first_step() -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 3))
    theirs = nn.Parameter(ours.detach().clone())
    optimizer, _ = build_optimizer({"encoder": [ours]}, Optim(weight_decay=1e-2), 0.1, 1, 1)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=1e-2, fused=False)
    for _ in range(5):
        ours.grad = torch.randn(5, 3)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_adam_is_the_papers_with_decay_in_the_gradient_and_a_checkpoint_has_its_moments_from_the_start() -> None:
    """Kingma and Ba, algorithm 1, in float64."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    w, m, v = parameter.detach().clone(), torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    optimizer, schedules = build_optimizer(
        {"encoder": [parameter]}, Optim(name="adam", momentum=0.8, weight_decay=0.01, schedule="constant"), 0.1, 9, 7
    )
    assert {schedules[0].at(step) for step in range(63)} == {0.1}
    held = set(optimizer.state[parameter])
    assert held == {"step", "exp_avg", "exp_avg_sq"}
    for t in range(1, 5):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        g = gradient + 0.01 * w
        m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.data, w, atol=1e-12, rtol=1e-10)
        assert set(optimizer.state[parameter]) == held


def test_adam_passes_over_what_has_no_gradient_moments_and_all() -> None:
    moved, resting = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer, _ = build_optimizer({"encoder": [moved], "head": [resting]}, Optim(name="adam"), 0.1, 1, 1)
    for _ in range(2):
        moved.grad, resting.grad = torch.ones(2), None
        optimizer.step()
    assert optimizer.state[moved]["step"] == 2
    assert optimizer.state[resting]["step"] == 0
    assert torch.equal(resting, torch.ones(2))
