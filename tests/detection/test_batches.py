"""Training batches are a function of seed and step; boxes and masks stay on what they are of."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.plan import Plan
from simsiam.detection.annotations import DetectionSet
from simsiam.detection.batches import Batch, TrainingBatches, images_to_test
from simsiam.detection.coco import open_coco
from simsiam.detection.voc import open_voc
from tests.detection.conftest import settings

CPU = torch.device("cpu")
TRAINVAL = [("2007", "trainval")]


def batches(images: DetectionSet, start: int, stop: int, rank: int = 0, ranks: int = 1, **others) -> list[list[Batch]]:
    plan = Plan(len(images), 4, 0, rank, ranks)
    return list(TrainingBatches(images, plan, settings(images.root, **others), CPU).steps(start, stop))


def same(one: Batch, two: Batch) -> bool:
    return (
        one.seed == two.seed
        and all(map(torch.equal, one.images, two.images))
        and all(torch.equal(a[key], b[key]) for a, b in zip(one.targets, two.targets) for key in a)
    )


def test_a_step_is_the_same_from_any_start_and_by_any_workers(coco: Path) -> None:
    images = open_coco(coco, "train2017")
    whole = batches(images, 0, 4, mask=True)
    later = batches(images, 2, 4, mask=True, workers=2)
    assert all(same(*pair) for pair in zip((step[0] for step in whole[2:]), (step[0] for step in later), strict=True))
    assert not same(whole[0][0], whole[2][0])


def test_ranks_and_micro_batches_share_one_global_batch_and_draw_apart(voc: Path) -> None:
    images = open_voc(voc, TRAINVAL)
    (alone,) = batches(images, 1, 2)
    parts = [batches(images, 1, 2, rank, 2, accumulate=2)[0] for rank in (0, 1)]
    pieces = [image for part in parts for micro in part for image in micro.images]
    assert all(map(torch.equal, alone[0].images, pieces))
    assert len({micro.seed for part in parts for micro in part}) == 4


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_go_along_with_a_flip(coco: Path, flip: float) -> None:
    images = open_coco(coco, "train2017")
    ((batch,),) = batches(images, 0, 1, mask=True, flip=flip)
    for sample, image, target in zip(Plan(len(images), 4, 0).batch(0).tolist(), batch.images, batch.targets):
        truth, original = images.training_target(sample, masks=True), images.read(sample)
        if flip:
            assert torch.equal(image, original.flip(2))
            assert torch.equal(target["masks"], truth["masks"].flip(2))
        for box, mask, label, was in zip(target["boxes"], target["masks"], target["labels"], truth["labels"]):
            rows, columns = np.nonzero(mask.numpy())
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == pytest.approx(tight, abs=0.01)
            assert label == was


def test_an_image_that_cannot_be_used_has_a_stand_in_with_its_own_objects(voc: Path, tmp_path: Path) -> None:
    root = shutil.copytree(voc, tmp_path / "voc")
    images = open_voc(root, TRAINVAL)
    cut, sized = (root / images.name(image) for image in (2, 5))
    cut.write_bytes(cut.read_bytes()[:200])
    Image.new("RGB", (30, 20)).save(sized)  # not the size that its boxes are of
    batch_of = [batch for (batch,) in batches(images, 0, 2)]
    assert {sample for batch in batch_of for sample, _ in batch.replaced} == {2, 5}
    assert any("30 x 20 pixels" in why for batch in batch_of for _, why in batch.replaced)
    order = Plan(len(images), 4, 0).batch(0).tolist() + Plan(len(images), 4, 0).batch(1).tolist()
    labels = [target["labels"] for batch in batch_of for target in batch.targets]
    for bad, stand_in in ((2, 3), (5, 6)):
        assert torch.equal(labels[order.index(bad)], images.training_target(stand_in)["labels"])
    tested = {found.image: found for found in images_to_test(images, range(1, 8), workers=0)}
    assert [image for image, found in tested.items() if found.pixels is None] == [2, 5]
    assert tested[2].why
