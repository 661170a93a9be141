"""SimSiam's other similarity against its formula, image by image."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.losses.softmax_cross_entropy import softmax_cross_entropy


def pair(images: int = 7, channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(2, images, channels, generator=generator))


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def by_loops(p: Tensor, z: Tensor) -> float:
    """The formula of section 4.5 in Python's float64, the mean over images."""
    total = 0.0
    for prediction, target in zip(p.tolist(), z.tolist()):
        total -= sum(t * math.log(q) for t, q in zip(softmax(target), softmax(prediction)))
    return total / len(p)


def test_it_is_the_mean_cross_entropy_over_channels() -> None:
    p, z = pair()
    assert softmax_cross_entropy(p, z).item() == pytest.approx(by_loops(p, z), abs=1e-6)


def test_gradient_is_the_difference_of_the_softmaxes() -> None:
    p, z = pair()
    p.requires_grad_()
    softmax_cross_entropy(p, z).backward()
    torch.testing.assert_close(p.grad, (p.detach().softmax(1) - z.softmax(1)) / len(p), atol=1e-7, rtol=1e-5)


def test_the_targets_get_a_gradient_unless_the_caller_detaches_them() -> None:
    p, z = pair()
    z.requires_grad_()
    assert not softmax_cross_entropy(p, z.detach()).requires_grad
    softmax_cross_entropy(p, z).backward()
    assert z.grad.abs().max() > 0


def test_equal_rows_give_their_entropy_and_nothing_gives_less() -> None:
    p, z = pair()
    entropy = sum(-sum(q * math.log(q) for q in softmax(row)) for row in z.tolist()) / len(z)
    assert softmax_cross_entropy(z, z).item() == pytest.approx(entropy, abs=1e-6)
    assert softmax_cross_entropy(p, z).item() > entropy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_predictions_are_compared_in_float32_whatever_their_size(dtype: torch.dtype) -> None:
    p, z = (t.to(dtype) for t in pair(channels=512))
    loss = softmax_cross_entropy(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(p, z), abs=1e-5)
    assert softmax_cross_entropy(p * 1000, z).isfinite()  # e to the power of that is beyond float32
