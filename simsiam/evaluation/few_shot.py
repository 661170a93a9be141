"""Logistic regression on frozen features of a few images a class, over several draws of these images."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from simsiam.data.counter import bits
from simsiam.errors import UserError

_DRAW = 0xFE35407


class FewShotAnswer(NamedTuple):
    """Top-1, and the mean over classes, in percent of each draw of k images a class."""

    shots: int
    top1: tuple[float, ...]
    mean_per_class: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.top1)

    @property
    def interval(self) -> float:
        """Half of the 95% interval of the mean, by Student's t; NaN for a single draw."""
        from scipy.stats import t

        n = len(self.top1)
        return float(t.ppf(0.975, n - 1)) * stdev(self.top1) / math.sqrt(n) if n > 1 else math.nan


def check_shots(labels: np.ndarray, classes: Sequence[str], shots: Sequence[int]) -> None:
    """Raises UserError where a class has fewer training images than are to be drawn, or there is one class alone."""
    if len(classes) < 2:
        raise UserError(f"There is one class alone, {classes[0]!r}; few-shot classification needs two or more")
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < max(shots):
        few = classes[int(counts.argmin())]
        raise UserError(f"--shots {max(shots)} is more than the {counts.min()} training images of {few!r}; take fewer")


def draw(labels: np.ndarray, shots: int, trial: int, seed: int) -> np.ndarray:
    """Positions, int64 (classes x shots,), of `shots` images of each class: a function of seed, trial and order."""
    order = np.lexsort((bits(seed, _DRAW, trial, np.arange(len(labels))), labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    return order[(first[:, None] + np.arange(shots)).ravel()]


def few_shot(
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    shots: Sequence[int],
    trials: int,
    seed: int,
    inverse_l2: float,
    show_progress: bool = False,
) -> list[FewShotAnswer]:
    """Accuracy on `val` for each number of shots.

    Args:
        train, val: features of length 1, float32 (n, D).
        inverse_l2: sklearn's C.
    """
    from sklearn.linear_model import LogisticRegression

    answers: dict[int, list[tuple[float, float]]] = {k: [] for k in shots}
    rounds = [(k, trial) for k in shots for trial in range(trials)]
    for k, trial in tqdm(rounds, desc="few-shot", unit=" fits", leave=False, disable=None if show_progress else True):
        chosen = draw(train_labels, k, trial, seed)
        model = LogisticRegression(C=inverse_l2, max_iter=1000).fit(train[chosen], train_labels[chosen])
        right = model.predict(val) == val_labels
        per_class = np.bincount(val_labels, right) / np.maximum(np.bincount(val_labels), 1)
        answers[k].append((100 * float(right.mean()), 100 * float(per_class[np.unique(val_labels)].mean())))
    return [FewShotAnswer(k, *zip(*draws)) for k, draws in answers.items()]
