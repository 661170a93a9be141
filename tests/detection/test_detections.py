"""Detections come together once an image, in one order, whatever the number of ranks and the size of the set."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from simsiam.detection.average_precision import average_precision
from simsiam.detection.coco_metrics import coco_results
from simsiam.detection.detections import Detections
from tests.ranks import run_ranks


def found_on(image: int) -> dict[str, object]:
    """Image i has i % 4 detections, all with the same score."""
    count = image % 4
    return {
        "boxes": torch.arange(4 * count).view(count, 4).float() + image,
        "scores": torch.full((count,), 0.5),
        "labels": torch.arange(count) % 2 + 1,
        "masks": [{"size": [5, 7], "counts": f"{image}-{k}"} for k in range(count)],
    }


def detect(size: int, everywhere: bool = True) -> Detections | None:
    detections = Detections()
    for image in range(dist.get_rank(), size, dist.get_world_size()):
        detections.add(image, **found_on(image))
    return detections.gather(everywhere)


def rows(detections: Detections) -> list[tuple]:
    return [(image, *(part.tolist() for part in found[:3]), found.masks) for image, found in detections]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_image_comes_once_to_every_rank(ranks: int) -> None:
    """Also with fewer images than ranks, and with none."""
    for size in (0, 1, 2, 7, 10):
        for of_rank in run_ranks(ranks, detect, size):
            assert len(of_rank) == size
            assert rows(of_rank) == [
                (i, *(found_on(i)[part].tolist() for part in ("boxes", "scores", "labels")), found_on(i)["masks"])
                for i in range(size)
            ]


def test_rank_0_alone_may_have_them() -> None:
    first, second = run_ranks(2, detect, 5, False)
    assert [image for image, _ in first] == [0, 1, 2, 3, 4]
    assert second is None


def score(size: int) -> tuple[list[list[float]], list[dict]]:
    """AP where all scores are equal and every third detection is wrong, and the rows for COCO."""
    truth = [{"boxes": found_on(i)["boxes"][:2] + 0.2, "labels": [1, 2][: i % 4]} for i in range(size)]
    detections = detect(size)
    ids = [100 - image for image in range(size)]
    per_class = average_precision(detections, truth, 2, "area").per_class
    return per_class.tolist(), coco_results(detections, "segm", image_ids=ids, category_ids=(3, 9))


def test_ap_and_results_do_not_depend_on_the_number_of_ranks() -> None:
    alone = run_ranks(1, score, 11)[0]
    assert 0 < alone[0][0][0] < 100
    for ranks in (2, 3):
        assert run_ranks(ranks, score, 11) == [alone] * ranks


def repeat() -> str:
    """Every rank sees image 4."""
    detections = Detections()
    for image in (dist.get_rank(), 4):
        detections.add(image, [], [], [])
    try:
        detections.gather(everywhere=False)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_an_image_of_two_ranks_is_refused_on_each() -> None:
    said = run_ranks(2, repeat)
    assert said[0] == said[1] == "1 images were given detections by more than one rank, first 4"


def test_arrays_are_copied_and_an_empty_image_is_kept(tmp_path: Path) -> None:
    boxes, detections = torch.ones(1, 4, requires_grad=True), Detections()
    detections.add(3, boxes, torch.ones(1, dtype=torch.bfloat16), [2])
    detections.add(1, torch.empty(0, 4), torch.empty(0), torch.empty(0))
    boxes.data.zero_()
    assert detections[3].boxes.tolist() == [[1, 1, 1, 1]]
    assert [image for image, _ in detections] == [1, 3]
    assert [part.dtype for part in detections[1][:3]] == [np.float32, np.float32, np.int64]
    assert [part.shape for part in detections[1][:3]] == [(0, 4), (0,), (0,)]
    assert detections[1].masks is None


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "masks", "said"),
    [
        ([[0, 0, 1, 1]], [0.5, 0.5], [1], None, "boxes, scores and labels"),
        ([[0, 0, 1]], [0.5], [1], None, "boxes, scores and labels"),
        ([[0, 0, 1, 1]], [0.5], [1], [], "0 masks for 1 boxes"),
        ([[0, 0, 1, float("nan")]], [0.5], [1], None, "not finite"),
        ([[0, 0, 1, 1]], [float("inf")], [1], None, "not finite"),
        ([[0, 0, 1, 1]], [0.5], [0], None, "label 0"),
    ],
)
def test_what_does_not_fit_is_refused(boxes: list, scores: list, labels: list, masks: list | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Detections().add(0, boxes, scores, labels, masks)


def test_an_image_is_added_once() -> None:
    detections = Detections()
    detections.add(7, [], [], [])
    with pytest.raises(ValueError, match="image 7"):
        detections.add(7, [], [], [])
