"""Draws are balanced and differ; the interval is Student's."""

import numpy as np
import pytest

from simsiam.errors import UserError
from simsiam.evaluation.few_shot import FewShotAnswer, check_shots, draw, few_shot

LABELS = np.repeat([0, 1, 2], [5, 9, 7])


def test_a_draw_has_as_many_of_each_class_and_each_trial_has_another() -> None:
    draws = [tuple(sorted(draw(LABELS, 4, trial, 0))) for trial in range(10)]
    for chosen in draws:
        assert np.bincount(LABELS[list(chosen)]).tolist() == [4, 4, 4]
        assert len(set(chosen)) == 12
    assert len(set(draws)) > 5
    assert draws[3] == tuple(sorted(draw(LABELS, 4, 3, 0)))
    assert sorted({sample for chosen in draws for sample in chosen}) == list(range(21))  # every image has its chance


def test_fewer_images_than_shots_are_refused() -> None:
    names = tuple(f"class {number}" for number in range(LABELS.max() + 1))
    check_shots(LABELS, names, [1, 5])
    with pytest.raises(UserError, match="--shots 6 is more than the 5 training images of 'class 0'; take fewer"):
        check_shots(LABELS, names, [1, 6])
    with pytest.raises(UserError, match="more than the 0 training images of 'none'"):
        check_shots(LABELS, (*names, "none"), [1])
    with pytest.raises(UserError, match="There is one class alone, 'cat'"):
        check_shots(np.zeros(9, np.int64), ("cat",), [1])


def test_mean_and_interval_of_known_numbers() -> None:
    answer = FewShotAnswer(5, (10.0, 20.0, 30.0), (10.0, 20.0, 30.0))
    assert answer.mean == 20
    assert answer.interval == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-6)
    assert np.isnan(FewShotAnswer(5, (10.0,), (10.0,)).interval)


def test_separable_classes_are_learned_and_noise_is_not() -> None:
    rng = np.random.Generator(np.random.Philox(0))
    labels = np.arange(300) % 3
    centres, noise = np.eye(3, 8)[labels], rng.normal(size=(300, 8)) * 0.1
    for features, low, high in ((centres + noise, 99, 100), (noise, 20, 47)):
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
        parts = features[:150], labels[:150], features[150:], labels[150:]
        (answer,) = few_shot(*parts, shots=[10], trials=3, seed=0, inverse_l2=10.0)
        assert low <= answer.mean <= high


def test_the_mean_over_classes_gives_each_class_the_same_weight() -> None:
    train, labels = np.eye(2, dtype=np.float32)[[0, 1]], np.array([0, 1])
    val, of_val = np.eye(2, dtype=np.float32)[[0, 0, 0, 0, 1, 0]], np.array([0, 0, 0, 0, 1, 1])
    (answer,) = few_shot(train, labels, val, of_val, shots=[1], trials=1, seed=0, inverse_l2=10.0)
    assert answer.top1 == (pytest.approx(100 * 5 / 6),)
    assert answer.mean_per_class == (75.0,)


def test_another_seed_draws_other_images_and_the_same_one_the_same() -> None:
    assert draw(LABELS, 4, 0, 0).tolist() == draw(LABELS, 4, 0, 0).tolist()
    assert len({tuple(sorted(draw(LABELS, 4, 0, seed))) for seed in range(10)}) > 5
