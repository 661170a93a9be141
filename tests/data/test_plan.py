"""The order of samples as a function of (seed, epoch, step), whatever the number of ranks."""

import pickle

import numpy as np
import pytest

from simsiam.data.plan import Plan

SHAPES = [
    (images, batch, world)
    for images in (24, 25, 48, 97, 1000)
    for batch in (8, 24)
    for world in (1, 2, 4, 8)
    if batch <= images
]


def epoch_ids(plan: Plan, epoch: int) -> np.ndarray:
    first = epoch * plan.steps_per_epoch
    return np.concatenate([plan.batch(step) for step in range(first, first + plan.steps_per_epoch)])


@pytest.mark.parametrize(("images", "batch", "world"), SHAPES)
def test_an_epoch_shows_every_image_once_but_for_the_dropped_tail(images: int, batch: int, world: int) -> None:
    plan = Plan(images, batch, seed=3, world_size=world)
    assert plan.steps_per_epoch == images // batch
    for epoch in range(3):
        ids = epoch_ids(plan, epoch)
        assert ids.dtype == np.int64
        assert len(ids) == len(np.unique(ids)) == images - images % batch
        assert ids.min() >= 0
        assert ids.max() < images


@pytest.mark.parametrize(("images", "batch", "world"), SHAPES)
def test_ranks_share_out_a_step_without_overlap(images: int, batch: int, world: int) -> None:
    ranks = [Plan(images, batch, 3, rank, world) for rank in range(world)]
    alone = Plan(images, batch, 3)
    for step in range(3 * alone.steps_per_epoch):
        parts = [plan.rank_batch(step) for plan in ranks]
        assert {len(part) for part in parts} == {batch // world}
        assert len(np.unique(np.concatenate(parts))) == batch
        assert (np.concatenate(parts) == alone.batch(step)).all()
        assert all((plan.batch(step) == alone.batch(step)).all() for plan in ranks)
        assert (alone.rank_batch(step) == alone.batch(step)).all()


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**40])
def test_epochs_differ_in_order(seed: int) -> None:
    plan = Plan(96, 32, seed)
    orders = [epoch_ids(plan, epoch) for epoch in range(8)]
    assert len({tuple(order) for order in orders}) == 8
    # Independent orders agree in one place on average; a rotated or partly shuffled one agrees in many.
    agreements = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert np.mean(agreements) == pytest.approx(1, abs=1)
    assert max(agreements) <= 8


def test_seeds_differ_from_the_first_epoch_on_and_do_not_multiply_with_the_epoch() -> None:
    orders = {tuple(epoch_ids(Plan(64, 16, seed), epoch)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_dropped_tail_is_another_one_each_epoch() -> None:
    plan = Plan(103, 25, seed=0)
    tails = [frozenset(range(103)) - set(epoch_ids(plan, epoch).tolist()) for epoch in range(60)]
    assert {len(tail) for tail in tails} == {3}
    assert len(set(tails)) == 60
    assert len(frozenset().union(*tails)) > 70  # 60 x 3 draws from 103 leave out about 18


def test_images_meet_anew_each_epoch() -> None:
    """Batches are not fixed groups that come in another order."""
    plan = Plan(64, 8, seed=0)
    groups = [{frozenset(plan.batch(step).tolist()) for step in range(8 * e, 8 * e + 8)} for e in range(5)]
    assert not any(groups[a] & groups[b] for a in range(5) for b in range(a))


@pytest.mark.parametrize(("images", "batch"), [(24, 8), (25, 8), (97, 24)])
def test_any_step_in_any_order_gives_the_same(images: int, batch: int) -> None:
    forward = Plan(images, batch, seed=5, rank=1, world_size=2)
    expected = [forward.rank_batch(step) for step in range(40)]
    shuffled = Plan(images, batch, seed=5, rank=1, world_size=2)
    for step in [*np.random.default_rng(0).permutation(40).tolist(), 39, 0, 39, 20]:
        assert (shuffled.rank_batch(step) == expected[step]).all()
        assert (Plan(images, batch, 5, 1, 2).rank_batch(step) == expected[step]).all()


@pytest.mark.parametrize(("images", "batch"), [(24, 8), (25, 8), (31, 8), (8, 8)])
def test_steps_belong_to_epochs_in_order(images: int, batch: int) -> None:
    plan = Plan(images, batch, seed=0)
    epochs = [plan.epoch(step) for step in range(4 * plan.steps_per_epoch)]
    assert epochs == [e for e in range(4) for _ in range(images // batch)]


def test_plan_travels_to_a_worker_with_nothing_but_its_five_numbers() -> None:
    plan = Plan(1000, 100, seed=9, rank=3, world_size=4)
    expected = plan.rank_batch(57)
    data = pickle.dumps(plan)
    assert len(data) < 200  # not the order of an epoch, which is 10 MB for ImageNet
    back = pickle.loads(data)
    assert back == plan
    assert (back.rank_batch(57) == expected).all()


def test_a_batch_that_a_caller_overwrites_does_not_spoil_the_plan() -> None:
    plan = Plan(32, 8, seed=0)
    expected = plan.batch(1).copy()
    got = plan.rank_batch(1)
    try:
        got[:] = -1
    except ValueError:  # read-only is as good
        return
    assert (plan.batch(1) == expected).all()
