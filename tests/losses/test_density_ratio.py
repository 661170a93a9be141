"""The logistic ratio loss against its formula, and that its minimum is the log density ratio."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.losses.density_ratio import logistic_ratio, minus_probability


def logits(rows: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, fake = 4 * torch.randn(2, rows, generator=generator, dtype=torch.float64)
    return real, fake


def test_it_is_half_of_two_cross_entropies() -> None:
    real, fake = logits()
    on_real = [-math.log(1 / (1 + math.exp(-t))) for t in real.tolist()]
    on_fake = [-math.log(1 - 1 / (1 + math.exp(-t))) for t in fake.tolist()]
    expected = (sum(on_real) / len(on_real) + sum(on_fake) / len(on_fake)) / 2
    assert logistic_ratio(real, fake).item() == pytest.approx(expected, abs=1e-12)
    assert logistic_ratio(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))


def test_the_encoders_loss_is_minus_the_mean_probability() -> None:
    real, _ = logits()
    expected = -sum(1 / (1 + math.exp(-t)) for t in real.tolist()) / len(real)
    assert minus_probability(real).item() == pytest.approx(expected, abs=1e-12)


def test_its_minimum_is_the_log_ratio_of_densities() -> None:
    """Two symbols: real pairs are the first with probability 3/4, fake ones with 1/4."""
    table = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    real, fake = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    for _ in range(150):
        (gradient,) = torch.autograd.grad(logistic_ratio(table[real], table[fake]), table)
        table.data.sub_(gradient, alpha=4.0)
    torch.testing.assert_close(table.detach(), torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64))


def test_16_bit_logits_give_float32_without_overflow() -> None:
    real, fake = torch.tensor([-300.0, 2.0]).bfloat16(), torch.tensor([300.0, 2.0]).bfloat16()
    loss = logistic_ratio(real, fake)
    assert loss.dtype == minus_probability(real).dtype == torch.float32
    assert loss.item() == pytest.approx(((300 + math.log1p(math.exp(-2))) + (300 + math.log1p(math.exp(2)))) / 4)
