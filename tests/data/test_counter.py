"""The counter-based generator. Its numbers are fixed, so a test of its statistics passes always or never."""

import numpy as np
import pytest
from scipy import stats

from simsiam.data.counter import bits, permutation, uniform

MASK = (1 << 64) - 1


def splitmix(*keys: int) -> int:
    """The same hash in Python's own integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        return x ^ (x >> 31)

    state = 0
    for key in keys:
        state = mix((state ^ (key & MASK)) + 0x9E3779B97F4A7C15 & MASK)
    return mix(state + 0x9E3779B97F4A7C15 & MASK)


def test_stream_never_changes_by_accident() -> None:
    """A change here changes every run that users have started: it needs a reason and a line in the release notes."""
    assert int(bits(0)) == 0xA706DD2F4D197E6F
    assert int(bits(1, 2)) == 0xE68E6FC01DF08360
    assert int(bits(-1)) == 0x5DC20AA7B2A27137
    assert int(bits(0, 0x71E3, 7, 1234, 1, 0)) == 0xB6EECAA9F40BF718
    assert float(uniform(0, 1, 2)) == 0.4975138992679691
    assert uniform(np.array([3, 4]), 5).tolist() == [0.34249083442670214, 0.3937360276527606]
    assert permutation(12, 0, 0xDE2, 0).tolist() == [10, 8, 1, 5, 7, 3, 4, 6, 0, 11, 9, 2]
    assert permutation(12, 1, 0xDE2, 0).tolist() == [10, 11, 7, 5, 0, 6, 4, 2, 1, 9, 8, 3]


@pytest.mark.parametrize(
    "keys", [(0,), (0, 0), (1, 2, 3), (2**63, 5), (2**64 - 1,), (-1,), (-7, 2**70 + 3), (10**18, 9)]
)
def test_bits_are_splitmix64_chained_over_the_keys(keys: tuple[int, ...]) -> None:
    assert int(bits(*keys)) == splitmix(*keys)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uniform_numbers_are_uniform_along_every_key(axis: int) -> None:
    keys: list[int | np.ndarray] = [11, 22, 33]
    keys[axis] = np.arange(50_000)
    u = uniform(*keys)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 0.001
    serial = np.histogram2d(u[:-1:2], u[1::2], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(serial.ravel()).pvalue > 0.001


def test_largest_bits_stay_below_one() -> None:
    """53 bits and no more: a rounded 64-bit fraction would reach 1.0."""
    u = uniform(np.arange(2000), 3)
    assert (u * 2**53 == np.floor(u * 2**53)).all()
    assert (u == (bits(np.arange(2000), 3) >> np.uint64(11)) / 2**53).all()
    assert ((u * 2**53) % 2).mean() == pytest.approx(0.5, abs=0.05)  # the lowest bit is in use


def test_every_bit_is_a_fair_coin() -> None:
    x = bits(5, np.arange(40_000))
    ones = np.array([int(((x >> np.uint64(b)) & np.uint64(1)).sum()) for b in range(64)])
    assert (np.abs(ones - 20_000) < 5 * 100).all()  # 5 standard deviations


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (0, 2**62, 0)])
def test_different_keys_are_uncorrelated(change: tuple[int, int, int]) -> None:
    n = np.arange(40_000)
    u, v = uniform(3, 4, n, 5), uniform(3 + change[0], 4 + change[1], n, 5 + change[2])
    assert abs(np.corrcoef(u, v)[0, 1]) < 5 / np.sqrt(len(n))
    assert stats.kstest((u - v) % 1, "uniform").pvalue > 0.001


def test_one_changed_bit_of_a_key_changes_half_of_the_bits() -> None:
    for bit in range(0, 63, 7):
        n = np.arange(2000)
        differ = np.unpackbits((bits(n, 9) ^ bits(n ^ (1 << bit), 9)).view(np.uint8))
        assert 64 * differ.mean() == pytest.approx(32, abs=0.5)


def test_order_and_number_of_keys_matter() -> None:
    grid = [bits(a, b) for a in range(30) for b in range(30)]
    assert len({int(x) for x in grid}) == 900
    assert int(bits(7)) not in (int(bits(7, 0)), int(bits(0, 7)))


def test_keys_broadcast_and_each_element_is_what_its_own_keys_give() -> None:
    samples, attempts = np.arange(5), np.arange(4)
    table = uniform(1, samples[:, None], 2, attempts[None, :])
    assert table.shape == (5, 4)
    for i in samples:
        for j in attempts:
            assert table[i, j] == uniform(1, int(i), 2, int(j))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64, np.uint8])
def test_type_of_an_integer_key_does_not_matter(dtype: type) -> None:
    assert (bits(np.arange(9).astype(dtype), 1) == bits(np.arange(9), 1)).all()
    assert bits(dtype(8), 1) == bits(8, 1)


def test_negative_key_is_the_same_alone_and_in_an_array() -> None:
    assert bits(np.array([-1]), 2)[0] == bits(-1, 2)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutation_has_every_number_once(n: int) -> None:
    order = permutation(n, 4, 5)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_of_seeds_and_epochs_all_differ() -> None:
    """Not `seed * epoch`: epoch 0 differs between seeds, and (2, 3) is not (3, 2)."""
    orders = {(seed, epoch): tuple(permutation(50, seed, epoch)) for seed in range(12) for epoch in range(12)}
    assert len(set(orders.values())) == 144
    assert orders[2, 3] != orders[3, 2]
    assert orders[0, 0] != orders[1, 0]
    assert orders[1, 0] != orders[0, 1]


def test_every_order_is_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(6000):
        order = tuple(permutation(4, key).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
