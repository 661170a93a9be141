"""COCO's AP equals pycocotools', on made sets with crowds, ties, empty images and ids that have gaps."""

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco_mask

from simsiam.detection.coco_metrics import coco_metrics, coco_results, encode_masks, write_results
from simsiam.detection.detections import Detections
from simsiam.errors import UserError

IMAGE_IDS, CATEGORY_IDS = (42, 7, 1000, 9, 12, 5), (1, 3, 90)
MAPPING = {"image_ids": IMAGE_IDS, "category_ids": CATEGORY_IDS}
FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
HEIGHT, WIDTH = 180, 240


def filled(box: np.ndarray) -> np.ndarray:
    """An ellipse in the box as bool (H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    (x1, y1, x2, y2) = box
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def made(seed: int) -> tuple[dict, Detections]:
    """Objects of all three sizes as polygons and run lengths, some crowds; detections near them with tied scores."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in IMAGE_IDS],
        "categories": [{"id": c, "name": str(c)} for c in CATEGORY_IDS],
        "annotations": [],
    }
    detections = Detections()
    for image, image_id in enumerate(IMAGE_IDS):
        count = int(rng.integers(3, 9)) if image else 0  # the first has no objects
        side = rng.choice([12, 50, 110], (count, 1)) * rng.uniform(0.8, 1.2, (count, 2))
        corner = rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - side)
        boxes, labels = np.concatenate([corner, corner + side], 1), rng.integers(0, 3, count)
        for k, (box, label) in enumerate(zip(boxes, labels)):
            shape = filled(box)
            crowd = int(k % 5 == 4)
            polygon = [[*box[:2], box[0], box[3], *box[2:], box[2], box[1]]]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [*box[:2], *(box[2:] - box[:2])],
                    "area": float(shape.sum()),
                    "iscrowd": crowd,
                    "segmentation": encode_masks(shape[None])[0] if crowd or k % 2 else polygon,
                }
            )
        if image == 3:
            continue  # never looked at: what is there is missed
        guesses = 12 if count else 2
        near = rng.integers(0, max(count, 1), guesses)
        found = boxes[near] if count else np.tile([5.0, 5, 60, 60], (guesses, 1))
        found = found + rng.normal(0, 1, found.shape) * rng.choice([0, 2, 8], (guesses, 1))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        said = np.where(rng.random(guesses) < 0.8, labels[near] if count else 0, rng.integers(0, 3, guesses)) + 1
        masks = encode_masks(np.stack([filled(box) for box in found]))
        detections.add(image, found, rng.integers(0, 10, guesses) / 10, said, masks)
    return truth, detections


def official(truth: dict, rows: list[dict], iou_type: str) -> list[float]:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluation = cocoeval.COCOeval(ground, ground.loadRes(copy.deepcopy(rows)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value for value in evaluation.stats[:6]]


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_by_way_of_the_file(seed: int, tmp_path: Path) -> None:
    truth, detections = made(seed)
    before = copy.deepcopy(truth)
    ours = coco_metrics(truth, detections, **MAPPING)
    assert truth == before
    for iou_type in ("bbox", "segm"):
        write_results(tmp_path / "results.json", detections, iou_type, **MAPPING)
        rows = json.loads((tmp_path / "results.json").read_text())
        expected = official(truth, rows, iou_type)
        assert list(ours[iou_type]) == FIGURES
        assert list(ours[iou_type].values()) == pytest.approx(expected, abs=1e-6)
        assert 0 < expected[0] < expected[1] < 100
    assert ours["bbox"] != ours["segm"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert coco_metrics(tmp_path / "truth.json", detections, **MAPPING) == ours


def perfect() -> tuple[dict, Detections]:
    """Two squares of 10 pixels found as they are; numbered from 0, and one without area and crowd."""
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in IMAGE_IDS]
    objects = [{"id": k, "image_id": i, "category_id": 3, "bbox": [4, 6, 10, 10]} for k, i in enumerate((42, 7))]
    objects[0].update(area=100, iscrowd=0)
    detections = Detections()
    for image in (0, 1):
        detections.add(image, [[4, 6, 14, 16]], [0.5], [2])
    return {"images": images, "annotations": objects, "categories": [{"id": c} for c in CATEGORY_IDS]}, detections


@pytest.mark.filterwarnings("error")
def test_perfect_detections_have_100_percent_and_absent_sizes_none() -> None:
    truth, detections = perfect()
    figures = coco_metrics(truth, detections, ["bbox"], **MAPPING)["bbox"]
    assert [figures[name] for name in FIGURES[:4]] == pytest.approx([100] * 4)
    assert np.isnan([figures["APm"], figures["APl"]]).all()


def test_only_the_given_images_and_categories_count() -> None:
    truth, detections = perfect()
    truth["annotations"].append({**truth["annotations"][0], "id": 9, "image_id": 5})
    assert coco_metrics(truth, detections, ["bbox"], **MAPPING)["bbox"]["AP50"] < 70
    fewer = {**MAPPING, "image_ids": IMAGE_IDS[:5]}
    assert coco_metrics(truth, detections, ["bbox"], **fewer)["bbox"]["AP50"] == pytest.approx(100)


def test_no_detections_have_0_percent(tmp_path: Path) -> None:
    truth, _ = made(0)
    looked = Detections()
    looked.add(1, [], [], [])
    for nothing in (Detections(), looked):
        for figures in coco_metrics(truth, nothing, **MAPPING).values():
            assert list(figures.values()) == [0] * 6
    write_results(tmp_path / "results.json", looked, "segm", **MAPPING)
    assert (tmp_path / "results.json").read_text() == "[]"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_have_ids_and_either_box_or_mask() -> None:
    detections = Detections()
    rle = {"size": [HEIGHT, WIDTH], "counts": "abc"}
    detections.add(1, [[1, 2, 4, 8.5]], [0.25], [3], [rle])
    common = {"image_id": 7, "category_id": 90, "score": 0.25}
    assert coco_results(detections, "bbox", **MAPPING) == [{**common, "bbox": [1, 2, 3, 6.5]}]
    assert coco_results(detections, "segm", **MAPPING) == [{**common, "segmentation": rle}]


def test_masks_survive_their_run_lengths() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((3, 5, 9)) < 0.5)
    for given in (masks, masks.numpy(), masks.to(torch.uint8) * 255):
        encoded = encode_masks(given)
        assert json.loads(json.dumps(encoded)) == encoded
        assert [rle["size"] for rle in encoded] == [[5, 9]] * 3
        decoded = coco_mask.decode(encoded)
        assert (decoded.transpose(2, 0, 1) == masks.numpy()).all()
    assert encode_masks(masks[:0]) == []
    for wrong in (masks.float(), masks[0]):
        with pytest.raises(ValueError, match="must be bool or uint8"):
            encode_masks(wrong)


def test_what_does_not_fit_is_refused() -> None:
    truth, detections = perfect()
    for wrong, said in [
        ({"image_ids": IMAGE_IDS[:1]}, "there are ids for 1 images"),
        ({"category_ids": CATEGORY_IDS[:1]}, "and 1 categories"),
        ({"image_ids": (42, 7, 8)}, r"lacks images \[8\]"),
        ({"category_ids": (1, 2, 3)}, r"categories \[2\]"),
        ({"iou_types": ("keypoints",)}, "neither 'bbox' nor 'segm'"),
        ({"iou_types": ("segm",)}, "image 0 has detections without masks"),
    ]:
        with pytest.raises(ValueError, match=said):
            coco_metrics(truth, detections, **{"iou_types": ("bbox",), **MAPPING, **wrong})
    turned = Detections()
    turned.add(0, [[0, 0, 5, 5]], [1], [1], [{"size": [WIDTH, HEIGHT], "counts": "abc"}])
    with pytest.raises(ValueError, match=r"image 42 is 180 x 240, its masks \[240, 180\]"):
        coco_metrics(truth, turned, ["segm"], **MAPPING)


def test_a_file_that_is_none_of_cocos_is_told_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    for content, said in [
        (None, "cannot be read"),
        ('{"images": [{"id": 1}', "cut off"),
        ("[]", "has no annotations and no categories and no images"),
        ('{"images": [], "annotations": []}', "has no categories"),
    ]:
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=said) as told:
            coco_metrics(file, Detections(), image_ids=(), category_ids=())
        assert str(file) in str(told.value)
