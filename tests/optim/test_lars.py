"""LARS is timm's, but for tensors whose gradient is 0, and stays where it is when a flag says so."""

import copy

import pytest
import timm.optim
import torch
from torch import nn

from simsiam.optim.build import build_optimizer
from simsiam.optim.lars import Lars
from simsiam.settings.tree import Optim


def built(momentum: float, decay: float = 1e-2) -> tuple[nn.Module, Lars]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))
    optim = Optim(name="lars", momentum=momentum, weight_decay=decay)
    return network, build_optimizer({"encoder": list(network.parameters())}, optim, 0.5, 1, 1)[0]


def draw_gradients(*networks: nn.Module, size: float = 1.0) -> None:
    for parameters in zip(*(network.parameters() for network in networks)):
        gradient = size * torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


@pytest.mark.parametrize("size", [1.0, 1e-8])  # of what the denominator's epsilon is
@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_it_is_timms(momentum: float, decay: float, size: float) -> None:
    (ours, optimizer), (theirs, _) = built(momentum, decay), built(momentum, decay)
    options = {"lr": 0.5, "momentum": momentum, "weight_decay": decay, "always_adapt": True, "trust_clip": False}
    reference = timm.optim.Lars(theirs.parameters(), **options, trust_coeff=0.001)
    for _ in range(5):
        draw_gradients(ours, theirs, size=size)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_gradient_a_tensor_does_not_decay() -> None:
    """LARC leaves alone what is all 0; timm's would take the decay at the full rate."""
    network, optimizer = built(0.9)
    draw_gradients(network)
    still, held, moving = list(network.parameters())[:3]
    still.grad.zero_()
    held.grad = None
    before = [parameter.detach().clone() for parameter in (still, held, moving)]
    optimizer.step()
    assert [torch.equal(now, then) for now, then in zip((still, held, moving), before)] == [True, True, False]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_moves_nothing_and_leaves_no_trace(momentum: float, bad: float) -> None:
    (network, optimizer), (undisturbed, other) = built(momentum), built(momentum)
    for step in range(5):
        draw_gradients(network, undisturbed)
        if step == 2:
            for parameter in network.parameters():
                parameter.grad.flatten()[0] = bad
                assert not parameter.grad.isfinite().all()
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), None
            optimizer.step()
            continue
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        other.step()
    for a, b in zip(network.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_copy_steps_as_the_first_does() -> None:
    network, optimizer = built(0.9)
    twin, twins = copy.deepcopy((network, optimizer))
    draw_gradients(network, twin)
    optimizer.step()
    twins.step()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_that_are_still_scaled_are_refused() -> None:
    """Their norms would be those of others; GradScaler hands its scale over where `unscale_` was not called."""
    network, optimizer = built(0.9)
    draw_gradients(network)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), torch.tensor(1024.0)
    with pytest.raises(AssertionError):
        optimizer.step()
