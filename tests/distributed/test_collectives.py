"""Sums and rows of all ranks, of few numbers and of many, which go by different ways."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.distributed.collectives import add_up, gather_rows, mean_over_ranks, sum_over_ranks
from tests.ranks import run_ranks


def own(numbers: int) -> Tensor:
    return torch.arange(numbers, dtype=torch.float64) * (dist.get_rank() + 1)


def on_a_rank(numbers: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value, kept = own(numbers), own(numbers)
    summed, mean = sum_over_ranks(kept), mean_over_ranks(kept)
    assert torch.equal(kept, own(numbers))  # neither of these is in place
    return add_up(value), value, summed, mean


@pytest.mark.parametrize("numbers", [1, 1000, 1 << 17])
def test_sums_and_means_of_few_and_of_many_numbers(numbers: int) -> None:
    expected = torch.arange(numbers, dtype=torch.float64) * 6
    for returned, in_place, summed, mean in run_ranks(3, on_a_rank, numbers):
        for sums in (returned, in_place, summed):
            assert torch.equal(sums, expected)
        torch.testing.assert_close(mean, expected / 3, rtol=1e-15, atol=0)


def rows_of_a_rank() -> Tensor:
    return gather_rows(torch.full((2 * dist.get_rank(), 3), float(dist.get_rank())))


def test_rows_come_in_the_order_of_ranks_though_one_has_none() -> None:
    for rows in run_ranks(3, rows_of_a_rank):
        assert rows[:, 0].tolist() == [1, 1, 2, 2, 2, 2]
