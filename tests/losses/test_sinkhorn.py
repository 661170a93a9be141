"""Sinkhorn-Knopp against the plain iteration in float64, on one rank and on several."""

import math

import pytest
import torch
from torch import Tensor

from simsiam.losses.sinkhorn import sinkhorn
from tests.ranks import run_ranks


def cosines(samples: int = 12, prototypes: int = 5, views: int = 2) -> Tensor:
    return torch.rand(views, samples, prototypes, generator=torch.Generator().manual_seed(0)) * 2 - 1


def by_loops(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (N, K) of one view: the matrix to marginals 1/K and 1/N in turn, number by number."""
    n, k = scores.shape
    q = [[math.exp(s / epsilon) for s in row] for row in scores.double().tolist()]
    for _ in range(iterations):
        of_prototype = [sum(q[i][j] for i in range(n)) for j in range(k)]
        q = [[q[i][j] / of_prototype[j] / k for j in range(k)] for i in range(n)]
        q = [[value / sum(row) / n for value in row] for row in q]
    return torch.tensor(q, dtype=torch.float64) * n


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.05, 1), (0.5, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_are_those_of_the_plain_iteration(epsilon: float, iterations: int, dtype: torch.dtype) -> None:
    scores = cosines().to(dtype)
    codes = sinkhorn(scores, epsilon, iterations)
    assert codes.dtype == dtype
    for view in range(2):
        expected = by_loops(scores[view], epsilon, iterations)
        torch.testing.assert_close(
            codes[view].double(), expected, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0
        )


def test_a_code_sums_to_1_and_in_the_end_all_prototypes_are_used_equally() -> None:
    codes = sinkhorn(cosines().double(), 0.5, 100)
    torch.testing.assert_close(codes.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(1), torch.full((2, 5), 12 / 5, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
def test_no_score_is_too_large_and_no_epsilon_too_small(factor: float) -> None:
    # Prototypes near to every sample and to none: exp(score / epsilon) is infinite or 0 in whole columns.
    codes = sinkhorn((cosines() + torch.tensor([0, 0, 0, 3.0, -3.0])) * factor, 0.01, 3)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(-1), torch.ones(2, 12))


def test_the_level_of_a_prototype_is_taken_out() -> None:
    lifted = cosines().double() + torch.tensor([0, 0, 0, 3.0, -3.0])
    torch.testing.assert_close(sinkhorn(lifted, 0.01, 3), sinkhorn(cosines().double(), 0.01, 3))


def test_16_bit_scores_are_worked_on_in_float32_and_no_gradient_comes_back() -> None:
    scores = cosines().bfloat16().requires_grad_()
    codes = sinkhorn(scores, 0.05, 3)
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    torch.testing.assert_close(codes, sinkhorn(scores.detach().float(), 0.05, 3))


def shares(scores: Tensor, cuts: list[int], epsilon: float) -> Tensor:
    rank = torch.distributed.get_rank()
    return sinkhorn(scores.tensor_split(cuts, dim=1)[rank], epsilon, 3)


@pytest.mark.parametrize("cuts", [[6], [5], [3, 6, 9], [1, 6, 8]])
@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_ranks_together_find_the_codes_of_one(cuts: list[int], epsilon: float) -> None:
    scores = cosines()
    together = torch.cat(run_ranks(len(cuts) + 1, shares, scores, cuts, epsilon), dim=1)
    torch.testing.assert_close(together, sinkhorn(scores, epsilon, 3), atol=1e-5, rtol=0)
    apart = torch.cat([sinkhorn(part, epsilon, 3) for part in scores.tensor_split(cuts, dim=1)], dim=1)
    assert (apart - together).abs().max() > 0.01  # what each rank would find by itself
