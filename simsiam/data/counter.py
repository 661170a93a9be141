"""Counter-based random numbers: a 64-bit hash of what a number is for. No state, so nothing to save or to seed."""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), which passes BigCrush on a plain counter."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*keys: int | np.ndarray) -> np.ndarray:
    """64 random bits for each combination of keys.

    Args:
        keys: integers or integer arrays that broadcast together; (1, 2) and (2, 1) are different.

    Returns:
        uint64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for key in keys:
            word = np.uint64(key & _MASK) if isinstance(key, int) else np.asarray(key).astype(np.uint64)
            state = _mix((np.asarray(state) ^ word) + np.uint64(_GOLDEN))
        return _mix(np.asarray(state) + np.uint64(_GOLDEN))


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits for each combination of keys, of the broadcast shape."""
    return (bits(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *keys: int) -> np.ndarray:
    """A random order of 0..n-1, int64 (n,)."""
    return np.argsort(bits(*keys, np.arange(n, dtype=np.uint64)), kind="stable")
