"""Which rank is slow, and why: one of several sleeps in its loader, in its forward pass or in its backward pass."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.distributed.runtime import Runtime
from simsiam.distributed.waiting import Waiting
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Run
from simsiam.training.build import build_state
from simsiam.training.clock import Clock
from simsiam.training.module import Trainable
from simsiam.training.skew import compare, over_ranks, remark
from simsiam.training.step import train_step
from tests.faults import harness
from tests.ranks import run_ranks

STEPS, NAP = 3, 0.3


class Loss(NamedTuple):
    loss: Tensor


class Sleeper(Trainable):
    """A network that naps in the forward or the backward pass where `place` says so."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Linear(4, 8), *[nn.BatchNorm1d(8)] * batchnorm, nn.Linear(8, 4))
        self.layers = per_view_batchnorm(nn.Sequential(*layers), views=1)
        self.place = ""

    def forward(self, x: Tensor) -> Loss:
        if self.place == "forward":
            time.sleep(NAP)
        y = self.layers(x)
        if self.place == "backward":
            y.register_hook(lambda grad: time.sleep(NAP))
        return Loss(y.square().mean())


def account(slow: int, place: str, batchnorm: bool) -> tuple[dict[str, float], dict[str, float]]:
    """What this rank's clock has read, and what is made of that and the others'."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings = Run(batch_size=4 * ranks, epochs=1, precision="fp32", optim=Optim())
    runtime = Runtime(rank, ranks, rank, torch.device("cpu"))
    module, place = Sleeper(batchnorm), place if rank == slow else ""
    state = build_state(module, settings, derive(settings, ranks, 80 * ranks), runtime)

    def batches() -> Iterator[Tensor]:
        for _ in range(STEPS):
            time.sleep(NAP * (place == "loader"))
            yield torch.randn(4, 4)

    for _ in range(3):  # in the third, DDP makes its buckets anew, and waits for rank 0 where nobody counts it
        train_step(state, [(torch.randn(4, 4),)])
    module.place = place
    clock = Clock(4 * ranks)
    for x in clock.timed(batches()):
        train_step(state, [(x,)])
    reading = clock.read()
    return reading, over_ranks(reading, runtime.device)


@pytest.mark.parametrize(
    ("ranks", "slow", "place", "batchnorm"),
    [(2, 1, "loader", True), (2, 0, "forward", False), (3, 1, "backward", True), (3, 2, "loader", False)],
)
def test_the_account_names_the_rank_that_naps_and_why(ranks: int, slow: int, place: str, batchnorm: bool) -> None:
    readings, accounts = zip(*run_ranks(ranks, account, slow, place, batchnorm))
    for rank, reading in enumerate(readings):
        waits = reading["data_seconds"], reading["collective_seconds"]
        works = reading["step_seconds"] - sum(waits)
        naps = rank == slow
        # The nap is in one part of each rank's step: where it naps, or where it waits for the one that does.
        expected = (naps and place == "loader", not naps, naps and place != "loader")
        assert tuple(seconds > NAP / 2 for seconds in (*waits, works)) == expected, (rank, reading)
        assert works >= 0
    for found in accounts:
        assert found["skew/slowest_rank"] == slow
        assert NAP / 2 < found["skew/seconds"] <= found["step_seconds"]
        assert (found["skew/data_seconds"] > NAP / 2) == (place == "loader")
        assert found["data_seconds_max"] == max(reading["data_seconds"] for reading in readings)
        assert readings[found["data_wait_rank"]]["data_seconds"] == found["data_seconds_max"]
        for name in ("step_seconds", "data_seconds", "collective_seconds"):
            assert found[name] == pytest.approx(sum(reading[name] for reading in readings) / ranks)


def test_the_slowest_is_late_by_what_the_median_of_the_others_waits_longer() -> None:
    assert compare(data=[0.1, 0.2, 0.7, 0.1], collective=[0.5, 0.4, 0.1, 0.7]) == pytest.approx(
        {
            "data_seconds_max": 0.7, "data_wait_rank": 2, "skew/slowest_rank": 2, "skew/seconds": 0.4,
            "skew/data_seconds": 0.6,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "of_data", "says"),
    [
        (0.19, 0.0, ""),
        (0.3, 0.1, "rank 3 late by 15% of a step"),
        (0.3, 0.2, "rank 3 late by 15% of a step, waits for data"),
    ],
)
def test_only_a_rank_that_costs_a_tenth_of_a_step_is_worth_a_word(seconds: float, of_data: float, says: str) -> None:
    found = {"skew/slowest_rank": 3, "skew/seconds": seconds, "skew/data_seconds": of_data}
    assert remark({"step_seconds": 2.0, **found}) == says


class Event:
    """Like one in a GPU's stream, which comes to it when the test says so."""

    def __init__(self, at: float) -> None:
        self.at, self.over = at, False

    def query(self) -> bool:
        return self.over

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.at - self.at)


def test_what_a_gpu_has_not_come_to_counts_later_and_once() -> None:
    waiting, first, second = Waiting(), Event(2.0), Event(10.5)
    waiting.add(Event(1.0), first)
    waiting.add(Event(10.0), second)
    assert waiting.seconds() == 0
    first.over = True
    assert waiting.seconds() == waiting.seconds() == 1.0
    second.over = True
    assert waiting.seconds() == 1.5


def test_one_rank_has_nobody_to_wait_for() -> None:
    found = over_ranks(Clock(8).read(), torch.device("cpu"))
    assert found.keys() == {"step_seconds", "data_seconds", "pairs_per_second"}
    assert remark(found) == ""


def test_a_run_tells_which_rank_is_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = SimSiam.forward

    def forward(self: SimSiam, *views: Tensor) -> NamedTuple:
        time.sleep(0.5 * (os.environ["RANK"] == "1"))
        return plain(self, *views)

    monkeypatch.setattr(SimSiam, "forward", forward)  # the ranks are forked from here
    out, settings = tmp_path / "run", [word for word in harness.RUN if word != "--hide-progress"]
    assert harness.run(2, out, "--max-steps", 4, "--log-every", 4, settings=settings) == [0, 0]
    (line,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert line["skew/slowest_rank"] == 1
    assert {"collective_seconds", "data_seconds_max", "data_wait_rank", "skew/data_seconds"} <= line.keys()
    late = line["skew/seconds"] / line["step_seconds"]
    assert f"  rank 1 late by {late:.0%} of a step  eta" in harness.said(out)
