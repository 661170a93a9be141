"""Alternation: a block of steps has the targets of the weights that it began with, as if they had been cached."""

import copy
import functools
from typing import Literal

import pytest
import torch
from torch import Tensor

from simsiam.errors import UserError
from simsiam.methods.base import Output, stack_views
from simsiam.methods.simsiam import SimSiam
from simsiam.methods.simsiam_alternating import AlternatingSimSiam
from tests.methods.stepping import STEPS_PER_EPOCH, assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import tiny_encoder
from tests.ranks import run_ranks

OPTIONS = {"dim": 16, "predictor_hidden": 4, "projector_layers": 2}


def build(alternate_steps: int | Literal["epoch"] = 3, **options: object) -> AlternatingSimSiam:
    torch.manual_seed(1)
    return AlternatingSimSiam(tiny_encoder(), alternate_steps=alternate_steps, **OPTIONS, **options)


def batches(steps: int) -> list[tuple[Tensor, ...]]:
    return [tuple(views.float() for views in batch) for batch in some_batches(steps, (2, 8))]


class Cached(SimSiam):
    """The paper's way: the targets of a block's batches are computed ahead and kept in memory."""

    def look_ahead(self, block: list[tuple[Tensor, ...]]) -> None:
        still = copy.deepcopy(self)  # whose statistics of evaluation are nobody's
        with torch.no_grad():
            self.cache = [still.projector(still.encoder(stack_views(views))) for views in block]

    def forward(self, *views: Tensor) -> Output:
        z = self.projector(self.encoder(stack_views(views)))
        return self.compare(self.predictor(z), self.cache.pop(0), z)


@pytest.mark.parametrize("alternate_steps", [1, 3, "epoch", 100])
def test_targets_are_those_cached_at_the_beginning_of_a_block(alternate_steps: int | Literal["epoch"]) -> None:
    ours = start(build(alternate_steps))
    torch.manual_seed(1)
    paper = start(Cached(tiny_encoder(), **OPTIONS))
    size, all_batches = STEPS_PER_EPOCH if alternate_steps == "epoch" else alternate_steps, batches(8)
    for begin in range(0, 8, size):
        block = all_batches[begin : begin + size]
        paper.module.look_ahead(block)
        assert go_on(ours, block) == go_on(paper, block)
    held = ours.tensors()
    for name, tensor in paper.tensors().items():
        assert torch.equal(tensor, held[name]), name


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_blocks_of_one_step_are_simsiam_to_the_bit_and_longer_ones_are_not(symmetry: str) -> None:
    torch.manual_seed(1)
    plain = start(SimSiam(tiny_encoder(), symmetry=symmetry, **OPTIONS))
    losses = go_on(plain, batches(4))
    state = start(build(1, symmetry=symmetry))
    assert go_on(state, batches(4)) == losses
    held = state.tensors()
    assert all(torch.equal(tensor, held[name]) for name, tensor in plain.tensors().items())
    blocks = go_on(start(build(2, symmetry=symmetry)), batches(4))
    assert [a == b for a, b in zip(blocks, losses, strict=True)] == [True, False, False, False]


def test_the_frozen_network_gets_no_gradient_and_is_in_no_group() -> None:
    state = start(build())
    go_on(state, batches(2))
    frozen = list(state.module.frozen.parameters())
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    grouped = {id(p) for group in state.module.parameter_groups().values() for p in group}
    assert grouped.isdisjoint(map(id, frozen))
    assert grouped == {id(p) for p in state.module.parameters() if p.requires_grad}


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_stops_within_a_block_or_between_goes_on_bit_equal(stop: int) -> None:
    straight = start(build())
    go_on(straight, batches(8))
    for name, tensor in resumed(build, batches(8), stop).items():
        assert torch.equal(tensor, straight.tensors()[name]), name


def whole(accumulate: int) -> tuple:
    return outcome(functools.partial(build, 2), some_batches(3, (2, 8)), accumulate=accumulate)


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_ranks_together_make_the_steps_of_one(ranks: int, accumulate: int) -> None:
    alone = whole(accumulate)
    for together in run_ranks(ranks, whole, accumulate):
        assert_same(together, alone, atol=1e-5)


def test_what_alternation_cannot_mean_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1, or epoch, not 0"):
        build(0)
    with pytest.raises(UserError, match="stop_gradient false has no meaning"):
        build(stop_gradient=False)
