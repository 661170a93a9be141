"""VOC's AP: worked examples, the rules one by one, and a slow version that follows the devkit to the letter."""

import numpy as np
import pytest

from simsiam.detection.average_precision import THRESHOLDS, AveragePrecision, average_precision, metric_of_year
from simsiam.detection.detections import Detections

BOX, ELSEWHERE = [10, 10, 30, 30], [200, 200, 220, 220]
FROM_1 = np.array([1, 1, 0, 0])  # to the devkit's pixels


def objects(*boxes: list, labels: list | None = None, difficult: list | None = None) -> dict[str, object]:
    given = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": labels or [1] * len(boxes)}
    return given if difficult is None else {**given, "difficult": difficult}


def detected(*images: list[tuple]) -> Detections:
    """Of each image (box, score) or (box, score, label)."""
    detections = Detections()
    for image, rows in enumerate(images):
        detections.add(image, [r[0] for r in rows], [r[1] for r in rows], [r[2] if len(r) > 2 else 1 for r in rows])
    return detections


def ap50(detections: Detections, truth: list, metric: str = "area", classes: int = 1) -> float:
    return average_precision(detections, truth, classes, metric).ap50


def test_worked_example() -> None:
    """Four objects; right, wrong, right, wrong, right: precision 1, 1/2, 2/3, 1/2, 3/5 at recall .25, .25, .5, .5, .75.

    What is left from each recall on is 1 up to .25, 2/3 up to .5, 3/5 up to .75, then 0. Of the recalls 0, .1, ... 1
    three are up to .25, three more up to .5, two more up to .75.
    """
    truth = [objects(BOX, ELSEWHERE), objects(BOX, ELSEWHERE)]
    far = [90, 90, 95, 95]
    detections = detected([(BOX, 0.9), (far, 0.8), (far, 0.6)], [(BOX, 0.7), (ELSEWHERE, 0.5)])
    assert ap50(detections, truth, "area") == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 4)
    assert ap50(detections, truth, "11-point") == pytest.approx(100 * (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)


def test_ap_is_the_mean_over_thresholds_and_ap75_one_of_them() -> None:
    """IoU 0.8 is above .50 ... .75, and .80 is not above itself."""
    result = average_precision(detected([([0, 0, 8, 10], 1)]), [objects([0, 0, 10, 10])], 1, "area")
    assert (result.ap50, result.ap75) == (100, 100)
    assert result.ap == pytest.approx(60)
    assert result.per_class[:, 0].tolist() == [100] * 6 + [0] * 4
    assert str(result) == "AP50 100.00, AP 60.00, AP75 100.00"


def test_the_overlap_must_be_greater_than_the_threshold() -> None:
    """The devkit's boxes 1...10 and 1...5 of pixels overlap in just a half: 0 to 10 and 0 to 5 here."""
    truth = [objects([0, 0, 10, 10])]
    assert ap50(detected([([0, 0, 5, 10], 1)]), truth) == 0
    assert ap50(detected([([0, 0, 5.01, 10], 1)]), truth) == 100


def test_a_second_detection_of_an_object_is_wrong() -> None:
    truth = [objects(BOX, ELSEWHERE)]
    twice = detected([(BOX, 0.9), (BOX, 0.8), (ELSEWHERE, 0.7)])
    assert ap50(twice, truth) == pytest.approx(100 * (1 + 2 / 3) / 2)
    # It goes to the object it overlaps most, and to no other, be the other one free and near enough.
    beside = [objects([0, 0, 10, 10], [0, 0, 10, 12])]
    assert ap50(detected([([0, 0, 10, 10], 0.9), ([0, 0, 10, 10.5], 0.8)]), beside) == pytest.approx(50)


def test_the_higher_score_has_the_object_whatever_the_order_in_the_image() -> None:
    loose = [10, 10, 30, 42]
    rows = [(loose, 0.4), (BOX, 0.8)]
    for order in (rows, rows[::-1]):
        result = average_precision(detected(order), [objects(BOX)], 1, "area")
        assert (result.ap50, result.ap) == (100, pytest.approx(100))


def test_equal_scores_keep_the_order_of_images() -> None:
    truth = [objects(BOX), objects(BOX)]
    assert ap50(detected([(BOX, 0.5)], [(ELSEWHERE, 0.5), (BOX, 0.5)]), truth) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert ap50(detected([(ELSEWHERE, 0.5), (BOX, 0.5)], [(BOX, 0.5)]), truth) == pytest.approx(100 * 2 / 3)


def test_difficult_objects_neither_count_nor_penalise() -> None:
    truth = [objects(BOX, ELSEWHERE, difficult=[True, False])]
    ignored, right = [(BOX, 0.9), (BOX, 0.8)], [(ELSEWHERE, 0.7)]
    assert ap50(detected(ignored + right), truth) == ap50(detected(right), truth) == 100
    assert ap50(detected(ignored), truth) == 0  # the other one is missed
    assert ap50(detected([([10, 10, 30, 14], 0.9), *right]), truth) == 50  # too far from it to be ignored


def test_no_detections() -> None:
    truth = [objects(BOX), objects()]
    for detections in (Detections(), detected([], [])):
        for metric in ("area", "11-point"):
            assert average_precision(detections, truth, 1, metric) == AveragePrecision(0, 0, 0, np.zeros(0))


def test_an_image_without_detections_counts_and_one_without_objects_penalises() -> None:
    truth = [objects(BOX), objects(), objects(BOX)]
    assert ap50(detected([(BOX, 0.5)], [(BOX, 0.9)]), truth) == pytest.approx(25)


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    """Whether or not the class was detected, and when all that it has is difficult."""
    truth = [objects(BOX, ELSEWHERE, labels=[1, 3], difficult=[False, True])]
    result = average_precision(detected([(BOX, 0.9), (BOX, 0.8, 2), (ELSEWHERE, 0.8, 3)]), truth, 3, "area")
    assert result.ap50 == result.ap == 100
    assert np.isnan(result.per_class).tolist() == [[False, True, True]] * 10
    nothing = average_precision(detected([(BOX, 0.9)]), [objects()], 3, "11-point")
    assert np.isnan([nothing.ap50, nothing.ap, nothing.ap75]).all()


def test_metric_of_a_year() -> None:
    assert [metric_of_year(year) for year in (2007, 2012)] == ["11-point", "area"]


@pytest.mark.parametrize(
    ("detections", "truth", "said"),
    [
        (detected([], [(BOX, 0.5)]), [objects(BOX)], "image 1 has detections"),
        (detected([(BOX, 0.5, 3)]), [objects(BOX)], "class 3, of 2"),
        (detected([(BOX, 0.5)]), [objects(BOX, labels=[0])], "image 0 has an object outside"),
        (detected([(BOX, 0.5)]), [objects(BOX, labels=[1, 1])], "1 boxes, 2 labels"),
        (detected(), [], "no image"),
    ],
)
def test_what_does_not_fit_is_refused(detections: Detections, truth: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        average_precision(detections, truth, 2, "area")
    with pytest.raises(ValueError, match="metric '2010'"):
        average_precision(detected([]), [objects(BOX)], 1, "2010")


def slow(detections: Detections, truth: list, label: int, threshold: float, eleven: bool) -> float:
    """The devkit's rules one detection at a time, on boxes of pixels counted from 1, the last included."""
    rows = [(-s, i, k) for i, found in detections for k, s in enumerate(found.scores) if found.labels[k] == label]
    taken: set[tuple[int, int]] = set()
    marks = []
    for _, i, k in sorted(rows):
        x1, y1, x2, y2 = detections[i].boxes[k].astype(float) + FROM_1
        most, which = 0.0, None
        for j, (box, of) in enumerate(zip(truth[i]["boxes"], truth[i]["labels"])):
            if of == label:
                left, top, right, bottom = box.astype(float) + FROM_1
                wide, high = min(x2, right) - max(x1, left) + 1, min(y2, bottom) - max(y1, top) + 1
                common = wide * high if wide > 0 and high > 0 else 0.0
                areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (right - left + 1) * (bottom - top + 1)
                if common / (areas - common) > most:
                    most, which = common / (areas - common), j
        if most > threshold and truth[i]["difficult"][which]:
            continue
        marks.append(most > threshold and (i, which) not in taken)
        if marks[-1]:
            taken.add((i, which))
    positives = sum(of == label and not hard for t in truth for of, hard in zip(t["labels"], t["difficult"]))
    points = [(sum(marks[: k + 1]) / positives, sum(marks[: k + 1]) / (k + 1)) for k in range(len(marks))]

    def left_from(recall: float) -> float:
        return max((p for r, p in points if r >= recall), default=0.0)

    if eleven:
        return 100 * sum(left_from(recall) for recall in np.arange(0, 1.1, 0.1)) / 11
    return 100 * sum(left_from(hit / positives) for hit in range(1, positives + 1)) / positives


def random_set(seed: int, images: int = 8, classes: int = 3) -> tuple[Detections, list]:
    """Objects on whole pixels, detections near and far, scores of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    detections, truth = Detections(), []
    for image in range(images):
        count, guesses = rng.integers(0, 6), int(rng.integers(0, 12))
        corner, side = rng.integers(0, 30, (count, 2)), rng.integers(5, 40, (count, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1), rng.integers(1, classes + 1, count)
        hard = rng.random(count) < 0.2
        truth.append({"boxes": boxes.astype(np.float32), "labels": labels, "difficult": hard})
        near = rng.integers(0, max(count, 1), guesses)
        if count:
            found = boxes[near] + rng.integers(-3, 4, (guesses, 4)) * rng.choice([0, 1, 0.7], (guesses, 1))
            said = np.where(rng.random(guesses) < 0.8, labels[near], rng.integers(1, classes + 1, guesses))
        else:
            found, said = np.tile([3.0, 3, 20, 20], (guesses, 1)), rng.integers(1, classes + 1, guesses)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        detections.add(image, found, rng.integers(0, 12, guesses) / 12, said)
    return detections, truth


@pytest.mark.parametrize("metric", ["11-point", "area"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_version(seed: int, metric: str) -> None:
    detections, truth = random_set(seed)
    result = average_precision(detections, truth, 3, metric)
    expected = [[slow(detections, truth, c, t, metric == "11-point") for c in (1, 2, 3)] for t in THRESHOLDS]
    np.testing.assert_allclose(result.per_class, expected, atol=1e-9)
    assert result.ap50 == pytest.approx(np.mean(expected[0]))
    assert result.ap75 == pytest.approx(np.mean(expected[5]))
    assert 0 < result.ap75 < result.ap50 < 100
    assert result.ap == pytest.approx(np.mean(expected))
