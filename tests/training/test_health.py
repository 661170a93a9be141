"""Spread, rank and verdict against their definitions, and over all ranks' images."""

import math
import re

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.settings.tree import Health
from simsiam.training.health import Verdict, effective_rank, examine, judge, spread
from tests.ranks import run_ranks


def normal(images: int, channels: int) -> Tensor:
    return torch.randn(images, channels, generator=torch.Generator().manual_seed(0))


def test_spread_is_the_std_of_unit_rows_times_the_root_of_their_width() -> None:
    z = normal(20, 6)
    rows = z.double() / z.double().norm(dim=1, keepdim=True)
    by_hand = sum(torch.std(rows[:, c]).item() for c in range(6)) / 6 * math.sqrt(6)
    assert spread(z).item() == pytest.approx(by_hand, rel=1e-5)


def test_spread_and_rank_do_not_see_the_length_of_a_row() -> None:
    z = normal(20, 6)
    scaled = z * torch.linspace(0.1, 50, 20).unsqueeze(1)
    assert spread(scaled).item() == pytest.approx(spread(z).item(), rel=1e-5)
    assert effective_rank(scaled).item() == pytest.approx(effective_rank(z).item(), rel=1e-5)


def test_spread_of_16_bit_projections_is_taken_in_float32() -> None:
    z = normal(256, 32).bfloat16()
    assert spread(z).dtype == torch.float32
    assert spread(z).item() == pytest.approx(spread(z.float()).item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_rank_is_the_exponential_of_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    z = normal(*shape)
    values = torch.linalg.svdvals(torch.nn.functional.normalize(z.double(), dim=1))
    share = values / values.sum()
    assert effective_rank(z).item() == pytest.approx(math.exp(-(share * share.log()).sum().item()), rel=1e-5)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_equally_used_orthogonal_directions_count_one_each(directions: int) -> None:
    z = torch.eye(8)[:directions].repeat(4, 1)
    assert effective_rank(z).item() == pytest.approx(directions, rel=1e-4)


@pytest.mark.parametrize(
    ("std", "rank", "state", "says"),
    [
        (0.8, 3.0, "ok", "^$"),  # the limits themselves are well
        (0.799, 100.0, "warn", "std .* 0.799, below 0.8"),
        (0.6, 100.0, "warn", "std .* 0.600, below 0.8"),
        (0.599, 100.0, "collapsed", "0.599, below 0.6: images map to nearly one point"),
        (0.9, 2.9, "warn", "effective rank .* 2.9, below 3.0"),
        (0.05, 1.0, "collapsed", "below 0.6"),
        (math.nan, 50.0, "warn", "not finite"),
        (1.0, math.nan, "warn", "not finite"),
    ],
)
def test_verdict_at_each_limit(std: float, rank: float, state: str, says: str) -> None:
    verdict = judge(std, rank, Health())
    assert verdict.state == state
    assert re.search(says, verdict.reason)


def test_limits_are_the_settings() -> None:
    health = Health(collapsed_std=0.6, warn_std=0.8, warn_rank=20)
    assert [judge(*m, health).state for m in [(0.5, 50), (0.7, 50), (0.9, 19), (0.9, 21)]] == [
        "collapsed", "warn", "warn", "ok",
    ]  # fmt: skip


def share_of(z: Tensor) -> tuple[dict, Verdict]:
    return examine(z.chunk(dist.get_world_size())[dist.get_rank()], Health())


def test_ranks_examine_all_images_together() -> None:
    # One point a rank: each rank alone has collapsed, together they are two directions of two.
    z = torch.eye(2).repeat_interleave(8, 0)
    measures, verdict = examine(z, Health())
    assert verdict.state == "warn"
    assert measures["effective_rank"] == pytest.approx(2, rel=1e-4)
    assert (measures["verdict"], measures["reason"]) == verdict
    for theirs, their_verdict in run_ranks(2, share_of, z):
        assert theirs["std"] == pytest.approx(measures["std"], rel=1e-6)
        assert theirs["effective_rank"] == pytest.approx(measures["effective_rank"], rel=1e-6)
        assert their_verdict.state == "warn"
