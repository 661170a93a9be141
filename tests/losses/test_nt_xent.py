"""The loss of SimCLR against its formula, on one rank and on several."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.distributed.collectives import gather_with_gradient, rank, world_size
from simsiam.losses.nt_xent import nt_xent
from tests.ranks import run_ranks


def projections(images: int = 6, channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, images, channels, generator=generator, dtype=torch.float64)


def by_loops(z: Tensor, temperature: float) -> Tensor:
    """Equation 1, pair by pair: 2k-1 and 2k are the views of image k."""
    z = z.transpose(0, 1).flatten(0, 1)

    def s(i: int, j: int) -> Tensor:
        return (z[i] * z[j]).sum() / (z[i].square().sum().sqrt() * z[j].square().sum().sqrt())

    def pair(i: int, j: int) -> Tensor:
        others = [torch.exp(s(i, k) / temperature) for k in range(len(z)) if k != i]
        return -torch.log(torch.exp(s(i, j) / temperature) / sum(others))

    return sum(pair(k, k + 1) + pair(k + 1, k) for k in range(0, len(z), 2)) / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_it_is_equation_1(temperature: float) -> None:
    ours, exact = (projections().requires_grad_() for _ in range(2))
    loss, expected = nt_xent(ours, temperature), by_loops(exact, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(ours.grad, exact.grad, atol=1e-12, rtol=1e-10)


def test_it_is_float32_from_32_bits_on() -> None:
    loss = nt_xent(projections().float(), 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(projections(), 0.1).item(), abs=1e-5)


def test_autocast_does_not_reach_the_similarities() -> None:
    z = projections().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(z.double(), 0.05).item(), abs=1e-5)


def test_equal_projections_are_chance_and_equal_views_of_scattered_images_are_none() -> None:
    assert nt_xent(torch.ones(2, 6, 4), 0.1).item() == pytest.approx(math.log(11), abs=1e-5)
    assert nt_xent(torch.eye(6).expand(2, 6, 6), 0.05).item() == pytest.approx(0, abs=1e-5)


def on_a_rank(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    part = z.chunk(world_size(), dim=1)[rank()].clone().requires_grad_()
    loss = nt_xent(part, temperature)
    loss.backward()
    return loss.detach(), part.grad


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_negatives_and_gradients(ranks: int) -> None:
    z = projections(8).requires_grad_()
    whole = nt_xent(z, 0.2)
    whole.backward()
    parts = run_ranks(ranks, on_a_rank, z.detach(), 0.2)
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole.detach(), atol=1e-12, rtol=0)
    # Parameters get the mean over ranks of what each rank's part gives them.
    torch.testing.assert_close(torch.cat([grad for _, grad in parts], dim=1) / ranks, z.grad, atol=1e-12, rtol=1e-10)


def weighted(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mine = rows.chunk(world_size())[rank()].clone().requires_grad_()
    everyone = gather_with_gradient(mine)
    (everyone.square() * weights[rank()]).sum().backward()
    return everyone.detach(), mine.grad


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_gathered_row_gets_the_sum_of_what_all_ranks_give_it(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(8, 3, generator=generator), torch.randn(ranks, 8, 3, generator=generator)
    found = run_ranks(ranks, weighted, rows, weights)
    assert all(torch.equal(everyone, rows) for everyone, _ in found)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), 2 * rows * weights.sum(0))
