"""The order of an epoch that reads shards in sequence: random, and yet only a few shards at a time."""

import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from simsiam.data.plan import Plan, make_plan, shard_order
from simsiam.errors import UserError
from simsiam.settings.tree import Run


@dataclass(frozen=True)
class Shuffled(Run):
    shuffle: str = "shards"
    shuffle_buffer: int = 60


def uneven(num_images: int, size: int) -> np.ndarray:
    """Shards of `size` to 2 `size` images."""
    sizes = np.random.default_rng(0).integers(size, 2 * size, num_images // size)
    return np.repeat(np.arange(len(sizes)), sizes)[:num_images].astype(np.int32)


def epoch_ids(plan: Plan, epoch: int) -> np.ndarray:
    first = epoch * plan.steps_per_epoch
    return np.concatenate([plan.batch(step) for step in range(first, first + plan.steps_per_epoch)])


CASES = [(n, size, buffer) for n in (1, 64, 1000) for size in (1, 20, 2000) for buffer in (1, 60, 5000)]


@pytest.mark.parametrize(("num_images", "size", "buffer"), CASES)
def test_an_epoch_shows_every_image_once(num_images: int, size: int, buffer: int) -> None:
    shards = np.arange(num_images) // size
    for epoch in range(3):
        order = shard_order(shards, buffer, 0, epoch)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(num_images))


@pytest.mark.parametrize(("size", "buffer"), [(20, 1), (20, 60), (20, 500), (7, 100), (100, 30)])
def test_only_a_window_of_shards_is_read_at_any_time(size: int, buffer: int) -> None:
    shards = uneven(3000, size)
    for epoch in range(3):
        read = shards[shard_order(shards, buffer, 1, epoch)]
        _, first = np.unique(read, return_index=True)
        _, last = np.unique(read[::-1], return_index=True)
        begun, ended = np.zeros(len(read) + 1, np.int64), np.zeros(len(read) + 1, np.int64)
        np.add.at(begun, first, 1)
        np.add.at(ended, len(read) - last, 1)
        open_at_a_time = np.cumsum(begun - ended)
        assert open_at_a_time.max() <= buffer / size + 2
        # With a full shuffle all shards are open nearly all the time.
        assert open_at_a_time.max() < len(np.unique(shards)) / 2


def test_samples_are_mixed_over_the_buffer_and_not_further() -> None:
    shards, buffer = uneven(3000, 20), 200
    together = np.argsort(shard_order(shards, 1, 5, 2))  # place of each sample before mixing
    place = np.argsort(shard_order(shards, buffer, 5, 2))
    moved = place - together
    assert np.abs(moved).max() < buffer
    # Two uniform displacements of 0 to 200 differ by a triangle of standard deviation 200 / sqrt(12).
    assert moved.std() == pytest.approx(buffer / 12**0.5, rel=0.1)


def test_without_a_buffer_shards_come_whole_in_the_order_of_their_samples() -> None:
    shards = uneven(500, 20)
    order = shard_order(shards, 1, 0, 0)
    runs = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
    assert len(runs) == len(np.unique(shards))
    assert all((np.diff(run) == 1).all() for run in runs)
    assert [shards[run[0]] for run in runs] != sorted(shards[run[0]] for run in runs)


def test_epochs_and_seeds_differ_in_shards_and_within() -> None:
    shards = uneven(500, 20)
    for buffer in (1, 60):
        orders = {tuple(shard_order(shards, buffer, seed, epoch)) for seed in range(4) for epoch in range(4)}
        assert len(orders) == 16
    one_shard = np.zeros(500, np.int64)
    assert len({tuple(shard_order(one_shard, 60, seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_every_shard_is_as_likely_to_come_first() -> None:
    shards = np.repeat(np.arange(10), 5)
    firsts = [shards[shard_order(shards, 1, 0, epoch)[0]] for epoch in range(500)]
    assert np.bincount(firsts, minlength=10).min() > 20  # 50 expected, with a standard deviation of 7


def test_a_part_of_a_set_keeps_the_order_of_its_shards() -> None:
    shards = uneven(500, 20)
    rows = np.sort(np.random.default_rng(0).permutation(500)[:200])
    whole = shard_order(shards, 1, 0, 3)
    assert rows[shard_order(shards[rows], 1, 0, 3)].tolist() == [sample for sample in whole if sample in set(rows)]


def test_ranks_share_out_the_same_order_and_a_worker_gets_it() -> None:
    shards = uneven(1000, 20)
    alone = Plan(1000, 48, 3, shards=shards, buffer=60)
    ranks = [Plan(1000, 48, 3, rank, 4, shards, 60) for rank in range(4)]
    for step in (0, 7, alone.steps_per_epoch, 3 * alone.steps_per_epoch + 5):
        assert np.concatenate([plan.rank_batch(step) for plan in ranks]).tolist() == alone.batch(step).tolist()
    copy = pickle.loads(pickle.dumps(ranks[2]))
    assert copy == ranks[2]
    assert copy.rank_batch(9).tolist() == ranks[2].rank_batch(9).tolist()
    ids = epoch_ids(alone, 1)
    assert len(np.unique(ids)) == 1000 - 1000 % 48


class Images:
    """A set of 100 images in five shards, or in none."""

    def __init__(self, shards: np.ndarray | None) -> None:
        self.index = SimpleNamespace(shards=shards)

    def __len__(self) -> int:
        return 100


def test_the_settings_choose_the_order() -> None:
    sharded, folder = Images(np.repeat(np.arange(5), 20)), Images(None)
    full, by_shards = Shuffled(seed=4, shuffle="full"), Shuffled(seed=4)
    assert make_plan(sharded, 10, full, 1, 2) == Plan(100, 10, 4, 1, 2)
    assert make_plan(sharded, 10, full, 1, 2).shards is None
    assert make_plan(folder, 10, full, 0, 1) == Plan(100, 10, 4)
    plan = make_plan(sharded, 10, by_shards, 1, 2)
    expected = shard_order(sharded.index.shards, 60, 4, 0)
    assert np.concatenate([plan.batch(step) for step in range(10)]).tolist() == expected.tolist()
    for images in (folder, SimpleNamespace()):
        with pytest.raises(UserError, match="simsiam shards"):
            make_plan(images, 10, by_shards, 0, 1)
    with pytest.raises(UserError, match="--shuffle-buffer 0"):
        make_plan(sharded, 10, Shuffled(shuffle_buffer=0), 0, 1)
