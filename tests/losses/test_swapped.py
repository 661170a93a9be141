"""Swapped prediction against its formula, image by image."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.losses.swapped import swapped_prediction


def example(views: int, codes: int = 2, images: int = 6, prototypes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(views, images, prototypes, generator=generator) * 2 - 1
    return scores, torch.rand(codes, images, prototypes, generator=generator).softmax(-1)


def by_loops(scores: Tensor, codes: Tensor, temperature: float) -> float:
    """Equations 2 and 6 in Python's float64, the mean over pairs of a code and another view."""
    losses = []
    for a, code in enumerate(codes.tolist()):
        for v, view in enumerate(scores.tolist()):
            if a == v:
                continue
            total = 0.0
            for q, s in zip(code, view):
                log_sum = math.log(sum(math.exp(x / temperature) for x in s))
                total -= sum(weight * (x / temperature - log_sum) for weight, x in zip(q, s))
            losses.append(total / len(code))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_mean_cross_entropy_over_pairs_of_different_views(views: int, temperature: float) -> None:
    scores, codes = example(views)
    loss = swapped_prediction(scores, codes, temperature)
    assert loss.item() == pytest.approx(by_loops(scores, codes, temperature), abs=1e-5)
    wide = swapped_prediction(scores.double(), codes.double(), temperature)
    assert wide.item() == pytest.approx(by_loops(scores, codes, temperature), abs=1e-12)


def test_gradient_is_softmax_minus_code() -> None:
    scores, codes = (t.double() for t in example(2))
    scores.requires_grad_()
    swapped_prediction(scores, codes, 0.1).backward()
    expected = ((scores / 0.1).softmax(-1) - codes.flip(0)) / 0.1 / 6 / 2  # 6 images, 2 pairs
    torch.testing.assert_close(scores.grad, expected.detach())


def test_a_code_never_meets_its_own_view() -> None:
    scores, codes = example(2)
    other = scores.clone()
    other[0] += torch.randn(6, 5)
    only_second = codes.clone()
    only_second[1] = 0  # the pair of code 2 and view 1
    assert swapped_prediction(scores, only_second, 0.1) == swapped_prediction(other, only_second, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_scores_are_compared_in_float32(dtype: torch.dtype) -> None:
    scores, codes = example(2)
    scores = scores.to(dtype)
    loss = swapped_prediction(scores, codes, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(scores, codes, 0.1), abs=1e-5)
