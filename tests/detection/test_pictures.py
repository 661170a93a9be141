"""Pictures show boxes and masks where they are, in their class's colour, and survive any image and any box."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from simsiam.detection.annotations import DetectionSet
from simsiam.detection.coco import open_coco
from simsiam.detection.coco_metrics import encode_masks
from simsiam.detection.detections import Detections, ImageDetections
from simsiam.detection.pictures import picture, write_pictures
from simsiam.detection.voc import open_voc
from tests.detection.test_annotations import SIZE, thing, write_coco, write_voc

CLASSES = ("cat", "dog", "cow")
GROUND, GRAY = 60, (160, 160, 160)
TITLE, GAP = 24, 8  # pixels above an image and between the halves

pytestmark = pytest.mark.filterwarnings("error:.*doesn.t contain any")


def found_of(
    boxes: object = (), scores: object = (), labels: object = (), masks: list | None = None
) -> ImageDetections:
    detections = Detections()
    detections.add(0, boxes, scores, labels, masks)
    return detections[0]


def target_of(boxes: object = (), labels: object = (), difficult: object = (), crowds: object = ()) -> dict:
    """Nothing is difficult or a crowd but the indices named."""
    count = range(len(labels))
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "difficult": torch.tensor([k in difficult for k in count], dtype=torch.bool),
        "iscrowd": torch.tensor([k in crowds for k in count], dtype=torch.bool),
    }


def plain(height: int = 400, width: int = 500) -> torch.Tensor:
    return torch.full((3, height, width), GROUND, dtype=torch.uint8)


def halves(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two images of a picture, without titles."""
    width = (drawn.shape[2] - GAP) // 2
    return drawn[:, TITLE:, :width], drawn[:, TITLE:, width + GAP :]


def read(file: Path) -> torch.Tensor:
    return pil_to_tensor(Image.open(file))


def at(image: torch.Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(image[:, y, x].tolist())


def test_boxes_are_where_they_are_in_the_colour_of_their_class() -> None:
    """Found: one of each class, and one of a low score. True: one of each, at the same places in the other order."""
    boxes = [[50, 100, 150, 200], [300, 250, 450, 350]]
    found = found_of([*boxes, [200, 30, 260, 90]], [0.9, 0.5, 0.4999], [1, 3, 2])
    left, right = halves(picture(plain(), found, target_of(boxes, [3, 1]), None, CLASSES))
    cat, cow = at(left, 50, 200 - 1), at(left, 300, 350 - 1)  # corners of the boxes: x2 and y2 are one past the last
    assert len({cat, cow, (GROUND,) * 3, GRAY}) == 4
    for x in (50, 51, 100, 148, 149):
        assert at(left, x, 199) == at(left, x, 198) == cat
        assert at(right, x, 199) == cow
    for image in (left, right):
        for x, y in ((49, 150), (150, 150), (100, 200), (100, 150), (299, 300), (450, 300), (230, 60), (201, 60)):
            assert at(image, x, y) == (GROUND,) * 3
    assert at(right, 449, 300) == cat
    assert at(left, 449, 300) == cow


def test_a_label_stands_on_its_box_and_in_the_picture() -> None:
    boxes = [[50, 100, 150, 200], [480, 0, 500, 400]]
    left, _ = halves(picture(plain(), found_of(boxes, [0.9, 0.8], [1, 2]), target_of(), None, CLASSES))
    cat, dog = at(left, 50, 199), at(left, 480, 399)
    assert at(left, 50, 99) == at(left, 60, 99) == cat
    assert at(left, 49, 99) == (GROUND,) * 3
    assert at(left, 499, 0) == at(left, 470, 0) == dog
    label = left[:, 85:99, 52:110]
    assert len(label.flatten(1).unique(dim=1).T) > 2  # there is text on the ground


def test_what_is_ignored_is_gray_and_below_the_others() -> None:
    same = [10, 100, 110, 200]
    target = target_of(
        [same, same, [200, 100, 300, 200], [350, 100, 450, 200]], [2, 1, 3, 1], difficult=[1], crowds=[2]
    )
    _, right = halves(picture(plain(), found_of(), target, None, CLASSES))
    assert at(right, 250, 199) == GRAY
    assert at(right, 400, 199) != GRAY
    assert at(right, 60, 199) not in (GRAY, at(right, 400, 199))


def test_masks_are_tinted_and_the_surest_is_on_top() -> None:
    masks = torch.zeros(2, 400, 500, dtype=torch.uint8)
    masks[0, 150:250, 100:200] = 1
    masks[1, 150:250, 150:250] = 1
    boxes = [[100, 150, 200, 250], [150, 150, 250, 250]]
    found = found_of(boxes, [0.9, 0.6], [1, 2], encode_masks(masks))
    target = target_of(boxes, [1, 2], crowds=[1])
    left, right = halves(picture(plain(), found, target, masks, CLASSES))
    cat, dog = (np.array(at(left, x, 249)) for x in (100, 249))
    half = {"cat": (GROUND + cat) // 2, "dog": (GROUND + dog) // 2, "gray": (GROUND + np.array(GRAY)) // 2}
    assert at(left, 125, 200) == at(right, 125, 200) == tuple(half["cat"])
    assert at(left, 225, 200) == tuple(half["dog"])
    assert at(right, 225, 200) == tuple(half["gray"])
    assert at(left, 175, 200) == tuple((half["dog"] + cat) // 2)
    assert at(right, 175, 200) == tuple((half["gray"] + cat) // 2)
    assert at(left, 175, 300) == (GROUND,) * 3


def test_small_images_are_enlarged_and_their_boxes_and_masks_with_them() -> None:
    mask = torch.zeros(1, 50, 100, dtype=torch.uint8)
    mask[0, 10:20, 30:60] = 1
    found = found_of([[30, 10, 60, 20]], [1.0], [2], encode_masks(mask))
    left, right = halves(picture(plain(50, 100), found, target_of(), None, CLASSES))
    assert left.shape == right.shape == (3, 200, 400)
    inside, edge = at(left, 180, 60), at(left, 120, 79)
    assert edge == at(left, 239, 79)
    assert inside == tuple((GROUND + np.array(edge)) // 2)
    assert {at(left, x, y) for x, y in ((119, 60), (240, 60), (180, 80))} == {(GROUND,) * 3}
    assert (right == GROUND).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (1, 10_000), (10_000, 1), (3, 700), (2000, 10_000)])
def test_no_image_and_no_box_is_too_strange(height: int, width: int) -> None:
    boxes = [
        [0, 0, width, height],
        [-1e30, -5, 1e30, 1e9],
        [-9, -9, -1, -1],
        [width, 0, width + 5, height],
        [width / 2, 0, width / 2, height],
        [width, height, 0, 0],
        [0.2, 0.2, 0.3, 0.3],
    ]
    labels = [1, 2, 3, 1, 2, 3, 1]
    masks = np.ones((7, height, width), np.uint8) if height * width < 1e5 else None
    found = found_of(boxes, [1.0] * 7, labels, None if masks is None else encode_masks(masks))
    given = None if masks is None else torch.from_numpy(masks)
    drawn = picture(plain(height, width), found, target_of(boxes, labels, difficult=[2]), given, CLASSES)
    assert drawn.dtype == torch.uint8
    assert 280 * 2 < drawn.shape[2] < 1600
    assert 80 < drawn.shape[1] < 900
    nothing = picture(plain(height, width), found_of(masks=[]), target_of(), torch.zeros(0, height, width), CLASSES)
    assert nothing.shape == drawn.shape


def detections_of(images: DetectionSet, *, without: tuple[int, ...] = ()) -> Detections:
    """What is true, found."""
    detections = Detections()
    for image in range(len(images)):
        if image not in without:
            target = images.target(image)
            masks = encode_masks(images.masks(image)) if images.has_masks else None
            detections.add(image, target["boxes"], torch.ones(len(target["labels"])), target["labels"], masks)
    return detections


def test_pictures_of_the_first_images_that_were_looked_at_and_can_be_read(tmp_path: Path) -> None:
    cat = SIZE + thing("cat", (1, 1, 20, 20))
    write_voc(
        tmp_path, **{"a b": cat, "a_b": cat, "unread": cat, "gone": cat, "größe..": cat, "more": SIZE, "last": cat}
    )
    for stem in ("gone", "last"):
        (tmp_path / f"VOC2007/JPEGImages/{stem}.jpg").unlink()
    listed = tmp_path / "VOC2007/ImageSets/Main/trainval.txt"
    listed.write_text(listed.read_text().replace("a b\n", "a*b\n"))
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / f"VOC2007/{folder}/a b.{ending}").rename(tmp_path / f"VOC2007/{folder}/a*b.{ending}")
    images = open_voc(tmp_path, [("2007", "trainval")])
    out = tmp_path / "out"
    out.mkdir()
    grid = write_pictures(out, images, detections_of(images, without=(2,)), 4)
    names = ["a_b", "a_b_", "gr__e__", "more"]
    assert sorted(file.name for file in (out / "detections").iterdir()) == [f"{name}.png" for name in names]
    one = read(out / "detections/a_b.png")
    assert one.shape == (3, TITLE + 320, 2 * 400 + GAP)
    assert torch.equal(read(out / "detections.png"), grid)
    assert torch.equal(grid[:, : one.shape[1]], one)
    assert grid.shape[1] == 4 * (one.shape[1] + GAP)


def test_masks_of_a_set_are_drawn(tmp_path: Path) -> None:
    notes = {"id": 1, "image_id": 4, "category_id": 2, "bbox": (5, 5, 20, 10), "iscrowd": 0}
    write_coco(tmp_path, annotations=[{**notes, "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]}])
    images = open_coco(tmp_path, "val2017")
    write_pictures(tmp_path, images, detections_of(images), 9)
    left, right = halves(read(tmp_path / "detections/a.png"))
    assert at(left, 200, 130) == at(right, 200, 130) != (0, 0, 0)
    assert at(left, 20, 20) == (0, 0, 0)


def test_nothing_to_show_writes_nothing(tmp_path: Path) -> None:
    write_voc(tmp_path, a=SIZE)
    images = open_voc(tmp_path, [("2007", "trainval")])
    out = tmp_path / "out"
    out.mkdir()
    assert write_pictures(out, images, Detections(), 4) is None
    assert write_pictures(out, images, detections_of(images), 0) is None
    (tmp_path / "VOC2007/JPEGImages/a.jpg").write_bytes(b"no image")
    assert write_pictures(out, images, detections_of(images), 4) is None
    assert list(out.iterdir()) == []


def test_the_grid_is_no_larger_than_a_page_takes_in(tmp_path: Path) -> None:
    write_voc(tmp_path, a=SIZE, b=SIZE)
    for stem in "ab":
        noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"VOC2007/JPEGImages/{stem}.jpg")
    images = open_voc(tmp_path, [("2007", "trainval")])
    grid = write_pictures(tmp_path, images, detections_of(images), 2)
    assert (tmp_path / "detections/a.png").stat().st_size > 1 << 20
    assert 1 << 20 < (tmp_path / "detections.png").stat().st_size <= 2 << 20
    assert torch.equal(read(tmp_path / "detections.png"), grid)
