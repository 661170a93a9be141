"""Names of sets, and what is refused before any training."""

import json
import shutil
from pathlib import Path

import pytest

from simsiam.detection.detections import Detections
from simsiam.detection.sets import DetectionData, main_figures, open_sets
from simsiam.errors import UserError
from tests.detection.conftest import settings

COCO = {"train_sets": ("coco_2017_train",), "test_set": "coco_2017_val"}


def perfect(data: DetectionData, masks: bool = False) -> Detections:
    """Every object found where it is."""
    from simsiam.detection.coco_metrics import encode_masks

    found = Detections()
    for image in range(len(data.test)):
        target = data.test.target(image)
        outlines = encode_masks(data.test.masks(image)) if masks else None
        found.add(image, target["boxes"], [0.9] * len(target["labels"]), target["labels"], outlines)
    return found


def test_voc_lists_join_and_a_perfect_detector_has_a_hundred(voc: Path) -> None:
    data = open_sets(settings(voc, train_sets=("voc_2007_train", "voc_2007_val")))
    assert (len(data.train), len(data.test), data.year) == (8, 6, 2007)
    scores = data.score(perfect(data), masks=False)
    assert scores.figures == pytest.approx({"AP50": 100, "AP": 100, "AP75": 100})
    assert {name for name, row in scores.by_class.items() if row["AP"] == pytest.approx(100)} == {
        data.test.classes[label - 1]
        for image in range(6)
        for label, hard in zip(*(data.test.target(image)[key].tolist() for key in ("labels", "difficult")))
        if not hard
    }


def test_coco_has_boxes_and_masks_of_every_size(coco: Path, tmp_path: Path) -> None:
    nested = tmp_path / "datasets"
    shutil.copytree(coco, nested / "coco")  # Detectron2's layout
    data = open_sets(settings(nested, **COCO, mask=True))
    scores = data.score(perfect(data, masks=True), masks=True)
    assert main_figures(scores.figures) == pytest.approx(
        dict.fromkeys(("AP50", "AP", "AP75", "mask_AP50", "mask_AP", "mask_AP75"), 100)
    )
    assert "APm" in scores.figures
    assert "mask_AP" not in data.score(perfect(data), masks=False).figures


def test_the_hash_is_of_what_is_trained_and_tested_on(voc: Path, tmp_path: Path) -> None:
    first = open_sets(settings(voc)).sha256
    assert open_sets(settings(voc)).sha256 == first
    assert open_sets(settings(voc, train_sets=("voc_2007_train",))).sha256 != first
    copied = shutil.copytree(voc, tmp_path / "voc")
    changed = next(iter((copied / "VOC2007/Annotations").glob("test_*.xml")))
    changed.write_text(changed.read_text().replace("shape", "shape", 1).replace("<xmax>", "<xmax>1", 1))
    assert open_sets(settings(copied)).sha256 != first


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"data": ""}, "No dataset is given"),
        ({"train_sets": ("voc_07_test",)}, "There is no set called voc_07_test; name them as voc_2007_trainval"),
        ({"train_sets": ()}, "There is no set called nothing"),
        ({"test_set": "coco_2017_val"}, "are of different layouts"),
        ({"mask": True}, "--mask needs outlines"),
        ({"test_set": "voc_2012_val"}, "There is no VOC2012"),
        ({"train_sets": ("voc_2007_everything",)}, "has no list ImageSets/Main/everything.txt"),
        ({"data": "/nowhere"}, "There is no VOC2007 in /nowhere"),
    ],
)
def test_a_mistake_in_the_names_is_one_sentence(voc: Path, others: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_sets(settings(voc, **others))


def test_coco_is_trained_on_one_set_at_a_time_and_a_cut_file_is_named(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one at a time"):
        open_sets(settings(coco, test_set="coco_2017_val", train_sets=("coco_2017_train", "coco_2017_val")))
    root = shutil.copytree(coco, tmp_path / "coco")
    file = root / "annotations/instances_val2017.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"instances_val2017\.json is no whole JSON file"):
        open_sets(settings(root, **COCO))
    other = json.loads(whole)
    other["categories"][0]["name"] = "circle"
    file.write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"different classes: shape0, circle in one alone"):
        open_sets(settings(root, **COCO))


def test_sets_that_nothing_can_be_learned_from(voc: Path, tmp_path: Path) -> None:
    root = shutil.copytree(voc, tmp_path / "voc")
    year = root / "VOC2007"
    for file in (year / "JPEGImages").glob("test_*"):
        file.rename(file.with_suffix(".jpeg"))
    with pytest.raises(UserError, match="None of the 6 images of the test set is there, such as .*test_000000.jpg"):
        open_sets(settings(root))
    for file in (year / "Annotations").glob("train_*"):
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(UserError, match=r"The train set has \d+ objects, and none that counts"):
        open_sets(settings(root))


def test_what_is_wrong_is_told_and_counted(voc: Path, tmp_path: Path) -> None:
    root = shutil.copytree(voc, tmp_path / "voc")
    (root / "VOC2007/Annotations/train_000001.xml").unlink()
    (root / "VOC2007/JPEGImages/test_000002.jpg").unlink()
    data = open_sets(settings(root))
    assert len(data.train) == 7
    assert "1 without an annotation file (left out): VOC2007/JPEGImages/train_000001.jpg" in data.told["train"]
    assert "1 no image file (it will count as unreadable): VOC2007/JPEGImages/test_000002.jpg" in data.told["test"]
