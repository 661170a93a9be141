"""The loss of MoCo against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.losses.info_nce import info_nce


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 4, 9))
    return (3 * q).to(dtype), F.normalize(k, dim=1).to(dtype), F.normalize(queue, dim=1).to(dtype)


def by_loops(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Equation 1, query by query."""
    losses = []
    for q, k in zip(queries, keys):
        q = q / q.square().sum().sqrt()
        positive = torch.exp((q * k).sum() / temperature)
        negatives = sum(torch.exp((q * n).sum() / temperature) for n in queue)
        losses.append(-torch.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_it_is_equation_1(temperature: float) -> None:
    q, k, queue = given()
    ours, exact = q.clone().requires_grad_(), q.clone().requires_grad_()
    loss, expected = info_nce(ours, k, queue, temperature), by_loops(exact, k, queue, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(ours.grad, exact.grad, atol=1e-12, rtol=1e-10)


def test_it_is_float32_from_32_bits_on_and_autocast_does_not_reach_it() -> None:
    q, k, queue = given()
    q, k, queue = q.bfloat16(), k.float(), queue.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(q, k, queue, 0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(q.double(), k.double(), queue.double(), 0.07).item(), abs=1e-5)


def test_chance_and_certainty() -> None:
    ones = F.normalize(torch.ones(4, 5), dim=1)
    assert info_nce(ones, ones, ones.repeat(2, 1), 0.2).item() == pytest.approx(math.log(9), abs=1e-5)
    assert info_nce(ones, ones, -ones, 0.05).item() == pytest.approx(0, abs=1e-5)
