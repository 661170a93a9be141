"""A detector over a set: the same on any number of ranks, whatever the images are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.detection.coco_metrics import encode_masks
from simsiam.detection.detections import Detections
from simsiam.detection.evaluate import detect, detect_and_score
from simsiam.detection.rcnn import build_detector
from simsiam.detection.sets import open_sets
from simsiam.detection.voc import open_voc
from simsiam.distributed.collectives import world_size
from simsiam.distributed.runtime import Runtime
from simsiam.models.encoders import build_encoder
from tests.detection.conftest import settings
from tests.ranks import run_ranks

BOX = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>1</ymax>"
OBJECT = f"<object><name>aeroplane</name><bndbox>{BOX}</bndbox></object>"
COCO = {"train_sets": ("coco_2017_train",), "test_set": "coco_2017_val"}


def runtime() -> Runtime:
    rank = torch.distributed.get_rank() if world_size() > 1 else 0
    return Runtime(rank, world_size(), rank, torch.device("cpu"))


def untrained(classes: int = 10, **given: object):
    """One that finds much, all of it wrong."""
    torch.manual_seed(1)
    small = {"head": "fpn", "mask": True, "min_size": 64, "max_size": 96, "post_nms": (20, 10)}
    return build_detector(build_encoder("resnet18"), classes, **{**small, **given}).eval()


def on_ranks(rcnn, images) -> tuple[Detections | None, int]:
    return tuple(detect(rcnn, images, runtime(), workers=0))


def same(one: Detections, two: Detections) -> None:
    assert [image for image, _ in one] == [image for image, _ in two]
    for (_, a), (_, b) in zip(one, two):
        for x, y in zip(a[:3], b[:3]):
            np.testing.assert_array_equal(x, y)
        assert a.masks == b.masks


def test_any_number_of_ranks_finds_the_same_and_looks_at_each_image_once(coco: Path) -> None:
    rcnn, images = untrained(), open_sets(settings(coco, **COCO, mask=True)).test
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone, unreadable = on_ranks(rcnn, images)
    torch.set_num_threads(threads)
    assert (len(alone), unreadable) == (len(images), 0)
    assert sum(len(found.scores) for _, found in alone) > len(images)
    for ranks in (2, 4):  # 6 images on 4 ranks: an uneven part
        (together, none), *others = run_ranks(ranks, on_ranks, rcnn, images)
        same(alone, together)
        assert none == 0
        assert all(found is None for found, _ in others)


def test_masks_are_those_that_the_detector_pastes(coco: Path) -> None:
    rcnn, images = untrained(), open_sets(settings(coco, **COCO, mask=True)).test
    found, _ = on_ranks(rcnn, images)
    rcnn.transform.pastes_masks = True
    with torch.no_grad():
        (whole,) = rcnn([images.read(0).float() / 255])
    assert found[0].masks == encode_masks(whole["masks"][:, 0] >= 0.5)
    assert found[0].masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (700, 10_000)])
def test_images_of_any_shape_are_searched(tmp_path: Path, shape: tuple[int, int]) -> None:
    height, width = shape
    folder = tmp_path / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    Image.effect_noise((width, height), 60).convert("RGB").save(folder / "JPEGImages/a.jpg")
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    (folder / "Annotations/a.xml").write_text(f"<annotation>{size}{OBJECT}</annotation>")
    (folder / "ImageSets/Main/test.txt").write_text("a\n")
    images = open_voc(tmp_path, [("2007", "test")])
    found, unreadable = on_ranks(untrained(20), images)
    assert (len(found), unreadable) == (1, 0)
    assert all(mask["size"] == [height, width] for mask in found[0].masks)


def test_an_image_that_cannot_be_read_has_nothing_found_in_it(
    voc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(voc, tmp_path / "voc")
    data = open_sets(settings(root))
    (root / data.test.name(3)).write_bytes(b"\xff\xd8 no image")
    rcnn = untrained(mask=False)
    answer = detect_and_score(rcnn, data, settings(root), runtime())
    assert answer.unreadable == 1
    assert len(answer.detections[3].scores) == 0 < len(answer.detections[2].scores)
    assert data.test.name(3) in caplog.text
    assert set(answer.scores.figures) == {"AP50", "AP", "AP75"}
    assert set(answer.scores.by_class) == set(data.test.classes)
    assert not rcnn.training
