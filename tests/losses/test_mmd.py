"""The kernel-mean loss against a transcription with loops, its ratio against known densities, and ranks against one."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.distributed.collectives import rank, world_size
from simsiam.losses.mmd import mmd_contrast
from tests.ranks import run_ranks

SIGMAS = (1.0, 10.0, 100.0, 1000.0)


def halves(images: int = 6, channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, noise = torch.randn(2, images, channels, generator=generator, dtype=torch.float64)
    return first, first + 0.5 * noise


def orders(images: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(images, generator=generator) for _ in range(2)])


def kernel(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], sigma: float) -> Tensor:
    squared = (one[0] - other[0]).square().sum() + (one[1] - other[1]).square().sum()
    return torch.exp(-squared / (2 * sigma * sigma))


def ratio(of: list[tuple[Tensor, Tensor]], to: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The density of pairs `of` over that of `to`, at each of `to`."""
    solved = []
    for sigma in SIGMAS:
        matrix = torch.stack([torch.stack([kernel(p, q, sigma) for q in to]) for p in to])
        against = torch.stack([sum(kernel(p, q, sigma) for q in of) for p in to])
        solved.append(torch.linalg.inv(matrix + 1e-3 * torch.eye(len(to), dtype=matrix.dtype)) @ against)
    return torch.relu(sum(solved) / len(SIGMAS)) + 1e-3


def by_loops(a: Tensor, b: Tensor, orders: Tensor) -> Tensor:
    n, p, q = len(a), *orders.tolist()
    joint = [(a[i], b[i]) for i in range(n)]
    r = 1 / ratio([(a[p[j]], b[q[j]]) for j in range(n)], joint)
    same = [(b[j], b[j]) for j in range(n)]
    terms = []
    for i in range(n):
        rows = ratio(same, [(a[i], b[j]) for j in range(n)])
        terms.append(-torch.log(r[i] / sum(rows)))
    return sum(terms) / n


@pytest.mark.parametrize(("images", "channels", "scale"), [(6, 4, 1), (12, 2, 3)], ids=["plain", "some ratios below 0"])
def test_loss_and_gradient_are_those_of_the_transcription(images: int, channels: int, scale: float) -> None:
    (a, b), (x, y) = ([(scale * z).requires_grad_() for z in halves(images, channels)] for _ in range(2))
    loss, expected = mmd_contrast(a, b, orders(images), SIGMAS, 1e-3), by_loops(x, y, orders(images))
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for mine, theirs in ((a, x), (b, y)):
        assert mine.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-8, rtol=1e-7)


def test_equal_projections_are_chance() -> None:
    assert mmd_contrast(torch.ones(8, 3), torch.ones(8, 3), orders(8)).item() == pytest.approx(math.log(8), abs=0.02)


def test_it_is_float64_inside_and_float32_outside_under_autocast_too() -> None:
    a, b = halves()
    with torch.autocast("cpu", torch.bfloat16):
        loss = mmd_contrast(a.float(), b.float(), orders(6))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_loops(a, b, orders(6)).item(), abs=1e-4)


def on_a_rank(a: Tensor, b: Tensor, orders: Tensor) -> tuple[Tensor, ...]:
    first, second = (z.chunk(world_size())[rank()].clone().requires_grad_() for z in (a, b))
    loss = mmd_contrast(first, second, orders)
    loss.backward()
    return loss.detach(), first.grad, second.grad


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compare_all_images_and_share_gradients(ranks: int) -> None:
    a, b = halves(8)
    whole = on_a_rank(a, b, orders(8))
    parts = run_ranks(ranks, on_a_rank, a, b, orders(8))
    torch.testing.assert_close(torch.stack([loss for loss, _, _ in parts]).mean(), whole[0], atol=1e-12, rtol=0)
    # Parameters get the mean over ranks of what each rank's part gives them.
    for half in (1, 2):
        together = torch.cat([part[half] for part in parts]) / ranks
        torch.testing.assert_close(together, whole[half], atol=1e-10, rtol=1e-9)
