"""Spread, rank and verdict against their definitions, and over all ranks' images."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.settings.tree import Health
from simsiam.training.health import Learned, Verdict, effective_rank, examine, judge, limits, spread
from tests.ranks import run_ranks

LIMITS = limits(Health(), collapsed_std=0.6, warn_std=0.8)


def normal(images: int, channels: int) -> Tensor:
    return torch.randn(images, channels, generator=torch.Generator().manual_seed(0))


def test_spread_is_the_std_of_unit_rows_times_the_root_of_their_width() -> None:
    z = normal(20, 6)
    rows = z.double() / z.double().norm(dim=1, keepdim=True)
    by_hand = sum(torch.std(rows[:, c]).item() for c in range(6)) / 6 * math.sqrt(6)
    assert spread(z).item() == pytest.approx(by_hand, rel=1e-5)


def test_spread_is_1_of_an_even_spread_and_0_of_a_point() -> None:
    assert spread(normal(512, 64)).item() == pytest.approx(1, abs=0.02)
    assert spread(normal(1, 64).expand(512, 64)).item() < 1e-3


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


def test_rank_looks_at_the_first_512_images_and_at_all_of_them() -> None:
    line, even = torch.ones(1, 8), torch.eye(8)
    assert effective_rank(torch.cat([line.repeat(512, 1), even.repeat(64, 1)])).item() == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.cat([line.repeat(64, 1), even.repeat(56, 1)])).item() > 5


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
    verdict = judge(std, rank, LIMITS)
    assert verdict.state == state
    assert re.search(says, verdict.reason)


def test_limits_are_the_methods_where_the_settings_name_none() -> None:
    assert (LIMITS.collapsed_std, LIMITS.warn_std) == (0.6, 0.8)
    asked = limits(Health(collapsed_std=0.0, warn_rank=9), collapsed_std=0.2, warn_std=0.5)
    assert asked == Health(collapsed_std=0.0, warn_std=0.5, warn_rank=9)


@pytest.mark.parametrize(("words", "says"), [(("--method", "moco"), "below 0.5"), ((), "below 0.6")])
def test_another_method_on_the_line_has_its_own_limits(call, tmp_path: Path, words: tuple, says: str) -> None:
    """A spread of 0.3, which batch norm on the output never shows in health."""
    still = [*words, "--optim.lr", "0", "--max-steps", 1, "--log-every", 1, "--knn-every", 0, "--method.dim", 16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simsiam.training.health.spread", lambda z: torch.tensor(0.3))
        assert call("pretrain.py", "--recipe", "quickstart", *still, "--out", tmp_path, "--hide-progress") == 0
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert says in line["reason"]


def test_limits_are_the_settings() -> None:
    health = Health(collapsed_std=0.6, warn_std=0.8, warn_rank=20)
    assert [judge(*m, health).state for m in [(0.5, 50), (0.7, 50), (0.9, 19), (0.9, 21)]] == [
        "collapsed", "warn", "warn", "ok",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("std", "learned", "state", "says"),
    [
        (1.0, Learned(0.6, 1.0, 100), "ok", "^$"),  # the limits themselves are well
        (
            1.0,
            Learned(0.59, 1.0, 100),
            "stuck",
            "loss stays high, 0.59 .* agree by 1.00, and std .* 1.000: no collapse",
        ),
        (1.0, Learned(0.0, 1.0, 99), "ok", "^$"),  # all begin there
        (1.0, Learned(0.3, 0.4, 1000), "ok", "^$"),
        (1.0, Learned(-0.5, 0.0, 100), "stuck", "loss stays high, -0.50"),  # worse than chance
        (0.7, Learned(0.1, 1.0, 100), "warn", "0.700, below 0.8"),
        (0.5, Learned(0.5, 1.0, 1), "collapsed", "0.500, below 0.6: images map to nearly one point"),
        (0.5, Learned(0.49, 1.0, 1000), "warn", "0.500, below 0.6, but the loss is high, 0.49 .*no collapse so far"),
        (0.0, None, "collapsed", "0.000, below 0.6"),
    ],
)
def test_loss_and_spread_together_tell_failures_apart(
    std: float, learned: Learned | None, state: str, says: str
) -> None:
    verdict = judge(std, 10.0, LIMITS, learned)
    assert verdict.state == state
    assert re.search(says, verdict.reason)


def test_what_was_learned_is_read_off_a_loss_of_any_scale() -> None:
    z = torch.stack([normal(16, 6), normal(16, 6) + 0.5])
    agreement = torch.nn.functional.cosine_similarity(*z.double(), dim=1).mean().item()
    health = replace(LIMITS, stuck=0.5, stuck_after=7)
    for least, chance in ((-1.0, 0.0), (0.0, 4.0)):
        for share, state in ((0.51 * agreement, "ok"), (0.49 * agreement, "stuck")):
            loss = torch.tensor(chance + share * (least - chance))
            measures, verdict = examine(z, health, loss, (least, chance), step=7)
            assert measures["agreement"] == pytest.approx(agreement, abs=1e-6)
            assert verdict.state == measures["verdict"] == state
            assert examine(z, health, loss, (least, chance), step=6)[1].state == "ok"
            unknown, verdict = examine(z, health, loss, None, step=7)
            assert verdict.state == "ok"
            assert "agreement" not in unknown


def share_of(z: Tensor) -> tuple[dict, Verdict]:
    rank = dist.get_rank()
    loss = torch.tensor([-0.5, 0.2][rank])
    return examine(z.chunk(dist.get_world_size(), dim=1)[rank], replace(LIMITS, stuck=0.1), loss, (-1.0, 0.0), step=100)


def test_ranks_examine_all_images_together() -> None:
    # One point a rank: each rank alone has collapsed, together they are two directions of two.
    z = torch.eye(2).repeat_interleave(8, 0).expand(2, -1, -1).clone()
    z[1, 8:] = 1.0  # what the second rank's views agree by is the root of a half
    measures, verdict = examine(z, replace(LIMITS, stuck=0.1), torch.tensor(-0.15), (-1.0, 0.0), step=100)
    assert verdict.state == "warn"
    assert measures["effective_rank"] == pytest.approx(2, rel=1e-4)
    assert measures["agreement"] == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-5)
    assert (measures["verdict"], measures["reason"]) == verdict
    for theirs, their_verdict in run_ranks(2, share_of, z):
        for name in ("std", "effective_rank", "agreement"):
            assert theirs[name] == pytest.approx(measures[name], rel=1e-6)
        assert their_verdict.state == "warn"
