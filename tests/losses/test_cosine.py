"""The loss of SimSiam against its formula, in float32 whatever comes in."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.losses.cosine import negative_cosine


def pair(images: int = 7, channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, channels, generator=generator), torch.randn(images, channels, generator=generator)


def by_loops(p: Tensor, z: Tensor) -> float:
    """Equation 1, image by image, in Python's float64."""
    total = 0.0
    for a, b in zip(p.tolist(), z.tolist()):
        total += sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
    return -total / len(p)


def test_it_is_minus_the_mean_cosine_over_images() -> None:
    p, z = pair()
    assert negative_cosine(p, z).item() == pytest.approx(by_loops(p, z), abs=1e-6)


def test_gradient_is_the_part_of_the_target_across_the_prediction() -> None:
    p, z = pair()
    p.requires_grad_()
    negative_cosine(p, z).backward()
    with torch.no_grad():
        lengths = p.norm(dim=1, keepdim=True)
        unit_p, unit_z = p / lengths, z / z.norm(dim=1, keepdim=True)
        across = unit_z - (unit_p * unit_z).sum(1, keepdim=True) * unit_p
    torch.testing.assert_close(p.grad, -across / lengths / len(p), atol=1e-6, rtol=1e-5)


def test_the_targets_get_a_gradient_unless_the_caller_detaches_them() -> None:
    p, z = pair()
    z.requires_grad_()
    assert not negative_cosine(p, z.detach()).requires_grad
    negative_cosine(p, z).backward()
    assert z.grad.abs().max() > 0


def test_lengths_do_not_matter_and_the_range_is_from_minus_1_to_1() -> None:
    p, z = pair()
    assert negative_cosine(p * 1e3, z * 1e-3).item() == pytest.approx(negative_cosine(p, z).item(), abs=1e-6)
    assert negative_cosine(z * 3, z).item() == pytest.approx(-1, abs=1e-6)
    assert negative_cosine(-z, z).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_predictions_are_compared_in_float32(dtype: torch.dtype) -> None:
    p, z = (t.to(dtype) * 200 for t in pair(channels=512))  # |p|^2 is about 2e7, beyond float16
    loss = negative_cosine(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(p, z), abs=1e-6)


def test_a_prediction_of_zeros_gives_0_and_a_finite_gradient() -> None:
    p, z = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 4)
    loss = negative_cosine(p, z)
    loss.backward()
    assert loss.item() == 0
    assert p.grad.isfinite().all()
