"""The relatives of SimSiam on several ranks are those on one, and a run that stops goes on as if it had not."""

import functools

import pytest
import torch
from torch import Tensor

from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_relatives import RELATIVES, build, every_relative, views
from tests.ranks import run_ranks

# What is random is drawn anew in each micro-batch: these three have some.
RUNS = [*((name, 1) for name in RELATIVES), *((name, 2) for name in ("adv", "adv-mmd", "joint"))]


def all_outcomes(batches: list[tuple[Tensor, ...]]) -> list[tuple]:
    return [outcome(functools.partial(build, name), batches, accumulate=accumulate) for name, accumulate in RUNS]


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    return all_outcomes(some_batches(3, (2, 8)))


@pytest.mark.parametrize("ranks", [2, 4])
def test_steps_on_ranks_are_those_of_one_rank_on_the_whole_batch(ranks: int, alone: list[tuple]) -> None:
    """With the encoder's turn in the last step; fake pairs and kernels cross the ranks."""
    together = run_ranks(ranks, all_outcomes, some_batches(3, (2, 8)))
    for (name, _), whole, *parts in zip(RUNS, alone, *together, strict=True):
        gradients = [g.abs().max() for key, g in whole[1].items() if key.startswith("encoder.0")]
        assert gradients, name
        assert min(gradients) > 1e-7, name
        for part in parts:
            assert_same(part, whole, atol=1e-5)


@every_relative
def test_a_run_that_stops_goes_on_bit_equal(name: str) -> None:
    batches = [(views(step),) for step in range(6)]
    adam = {"name": "adam", "schedule": "constant", "lr": 0.1}
    straight = start(build(name), **adam)
    go_on(straight, batches)
    for key, tensor in resumed(functools.partial(build, name), batches, stop=3, **adam).items():
        assert torch.equal(tensor, straight.tensors()[key]), key
