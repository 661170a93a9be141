"""Scenes: the same in both layouts and each time, boxes tight around what is visible, whole or absent."""

import hashlib

import numpy as np
import pytest
import torch

from simsiam.data.sources.scene_drawing import draw_scene
from simsiam.data.sources.scenes import make_scenes, scenes, scenes_root
from simsiam.data.sources.shapes import CLASSES
from simsiam.detection.coco import open_coco
from simsiam.detection.findings import check
from simsiam.detection.voc import open_voc
from simsiam.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for layout in ("voc", "coco"):
        make_scenes(root / layout, layout, train=60, val=10)
    return root


def digest(root):
    hashes = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        hashes.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return hashes.hexdigest()


@pytest.mark.parametrize(
    ("of_voc", "of_coco", "split"), [("trainval", "train2017", "train"), ("test", "val2017", "val")]
)
def test_both_layouts_read_back_to_what_was_drawn(folders, of_voc, of_coco, split):
    voc, coco = open_voc(folders / "voc", [("2007", of_voc)]), open_coco(folders / "coco", of_coco)
    assert voc.classes == coco.classes == CLASSES
    assert len(voc) == len(coco) == {"train": 60, "val": 10}[split]
    for image, scene in enumerate(scenes(split, len(voc))):
        assert voc.size(image) == coco.size(image) == scene.pixels.shape[:2]
        one, other = voc.target(image), coco.target(image)
        assert one["boxes"].tolist() == other["boxes"].tolist() == [list(thing.box) for thing in scene.objects]
        assert one["labels"].tolist() == other["labels"].tolist() == [thing.label + 1 for thing in scene.objects]
        assert one["difficult"].tolist() == other["iscrowd"].tolist() == [thing.hidden for thing in scene.objects]
        assert other["area"].tolist() == [thing.mask.sum() for thing in scene.objects]
        np.testing.assert_array_equal(coco.masks(image).numpy(), [thing.mask for thing in scene.objects])
        assert torch.equal(voc.read(image), coco.read(image))
        error = np.abs(voc.read(image).permute(1, 2, 0).numpy().astype(int) - scene.pixels).mean()
        assert error < 16  # the grain that JPEG smooths; two scenes differ by 50


def test_nothing_is_wrong_with_them(folders):
    for images in (
        *(open_voc(folders / "voc", [("2007", name)]) for name in ("trainval", "train", "val", "test")),
        *(open_coco(folders / "coco", name) for name in ("train2017", "val2017")),
    ):
        assert check(images).problems == {}
    parts = [open_voc(folders / "voc", [("2007", name)]) for name in ("train", "val", "trainval")]
    assert [len(part) for part in parts] == [48, 12, 60]
    assert (folders / "voc/preview.png").stat().st_size > 10_000


def test_boxes_are_tight_and_masks_apart():
    for scene in scenes("train", 40, seed=3):
        masks = np.stack([thing.mask for thing in scene.objects])
        assert masks.sum(axis=0).max() == 1
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            inside = thing.mask[top:bottom, left:right]
            assert inside.sum() == thing.mask.sum() > 0
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert 96 <= min(scene.pixels.shape[:2]) <= max(scene.pixels.shape[:2]) <= 160


def test_classes_and_numbers_of_objects_vary_and_few_are_hidden():
    found = [scene.objects for scene in scenes("train", 150)]
    assert {len(objects) for objects in found} == {1, 2, 3}
    things = [thing for objects in found for thing in objects]
    assert np.bincount([thing.label for thing in things], minlength=10).min() > 12
    assert 0 < sum(thing.hidden for thing in things) < 0.1 * len(things)


def test_the_same_bytes_each_time_and_others_for_another_seed(tmp_path):
    for layout in ("voc", "coco"):
        for name, seed in [("one", 0), ("two", 0), ("three", 1)]:
            make_scenes(tmp_path / layout / name, layout, train=3, val=2, seed=seed)
        digests = [digest(tmp_path / layout / name) for name in ("one", "two", "three")]
        assert digests[0] == digests[1] != digests[2]


def test_a_scene_is_a_function_of_its_number_alone():
    few, many = list(scenes("val", 2, seed=5)), list(scenes("val", 4, seed=5))
    assert (few[1].pixels == many[1].pixels).all()
    train = next(scenes("train", 1, seed=5))
    assert train.pixels.shape != few[0].pixels.shape or (train.pixels != few[0].pixels).any()
    again = draw_scene(np.random.Generator(np.random.Philox(key=[(5 << 8) + 3, 1])))
    assert (again.pixels == few[1].pixels).all()


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("simsiam.data.sources.scenes.draw_scene", interrupt)
        make_scenes(tmp_path / "set", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="new or empty folder"):
        make_scenes(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_in_the_cache_it_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path))
    monkeypatch.setattr("simsiam.data.sources.scenes.make_scenes.__defaults__", ("voc", 2, 1, 0))
    root = scenes_root("coco")
    made = root.stat().st_ino
    assert len(open_coco(root, "train2017")) == 2
    assert scenes_root("coco").stat().st_ino == made
