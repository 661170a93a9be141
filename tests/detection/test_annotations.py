"""Annotated sets: known numbers from hand-written files, masks as pycocotools makes them, and planted faults."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.image_set import BadImage
from simsiam.detection import findings
from simsiam.detection.annotations import NO_SIZE
from simsiam.detection.coco import NO_IMAGE, REPEATED_IMAGE, REPEATED_OBJECT, open_coco
from simsiam.detection.findings import check
from simsiam.detection.voc import CLASSES, NO_ANNOTATION, REPEATED, open_voc
from simsiam.errors import UserError

SIZE = "<size><width>50</width><height>40</height><depth>3</depth></size>"


def thing(name, box, difficult=0, more=""):
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{more}<difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def write_voc(root, year="2007", split="trainval", **files):
    """Files are stem -> what is in <annotation>; None writes no XML file."""
    folder = root / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in files))
    for stem, content in files.items():
        Image.new("RGB", (50, 40), (200, 0, 0)).save(folder / f"JPEGImages/{stem}.jpg")
        if content is not None:
            (folder / f"Annotations/{stem}.xml").write_text(f"<annotation>{content}</annotation>")
    return root


def write_coco(root, split="val2017", **lists):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    lists = {"images": IMAGES, "annotations": [], "categories": CATEGORIES, **lists}
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(lists))
    for image in lists["images"]:
        Image.new("RGB", (30, 20)).save(root / split / image["file_name"])
    return root


IMAGES = [
    {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
    {"id": 4, "file_name": "a.jpg", "height": 20, "width": 30},
]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]


def note(number, image=4, category=2, box=(1, 2, 10, 5), **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": 12.5, "iscrowd": 0, **more}


class TestVoc:
    def test_known_numbers(self, tmp_path):
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        write_voc(
            tmp_path, a=SIZE + thing("aeroplane", (1, 1, 50, 40), more=part) + thing("tvmonitor", (11, 6, 20.5, 9), 1)
        )
        images = open_voc(tmp_path, [("2007", "trainval")])
        assert images.classes == CLASSES
        assert len(CLASSES) == 20
        assert list(CLASSES) == sorted(CLASSES)
        assert (len(images), images.name(0), images.image_id(0)) == (1, "VOC2007/JPEGImages/a.jpg", "a")
        assert images.size(0) == (40, 50)
        target = images.target(0)
        assert target["boxes"].tolist() == [[0, 0, 50, 40], [10, 5, 20.5, 9]]
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].tolist() == [1, 20]
        assert target["area"].tolist() == [2000, 42]
        assert target["difficult"].tolist() == [False, True]
        assert target["iscrowd"].tolist() == [False, False]
        assert images.training_target(0)["labels"].tolist() == [1, 20]  # a difficult one is trained on
        assert images.masks(0).shape == (2, 40, 50)
        assert not images.masks(0).any()
        assert images.read(0).shape == (3, 40, 50)

    @pytest.mark.parametrize("below", [".", "VOC2007", "VOCdevkit"])
    def test_years_in_one_order_from_any_of_the_folders(self, tmp_path, below):
        base = tmp_path / "VOCdevkit" if below == "VOCdevkit" else tmp_path
        write_voc(base, "2007", b=SIZE, a=SIZE + thing("cat", (1, 1, 2, 2)))
        write_voc(base, "2012", x=SIZE + thing("dog", (1, 1, 2, 2)))
        images = open_voc(
            tmp_path if below == "VOCdevkit" else tmp_path / below, [("2007", "trainval"), ("2012", "trainval")]
        )
        assert [images.image_id(image) for image in range(3)] == ["b", "a", "x"]
        assert images.counts.tolist() == [0, 1, 1]
        assert images.read(2).shape == (3, 40, 50)
        assert [images.annotated().image_id(image) for image in range(2)] == ["a", "x"]

    def test_own_classes(self, tmp_path):
        write_voc(tmp_path, a=SIZE + thing("zebra", (1, 1, 2, 2)))
        with pytest.raises(UserError, match=r"a\.xml has an object of the class 'zebra'.*classes\.txt"):
            open_voc(tmp_path, [("2007", "trainval")])
        (tmp_path / "classes.txt").write_text("gnu\nzebra\n")
        images = open_voc(tmp_path, [("2007", "trainval")])
        assert images.classes == ("gnu", "zebra")
        assert images.target(0)["labels"].tolist() == [2]

    def test_faults_are_counted_and_named(self, tmp_path):
        outside, flat = thing("cat", (1, 1, 60, 40)), thing("dog", (9, 9, 8, 20))
        write_voc(
            tmp_path, a=SIZE + outside + flat + thing("cow", (1, 1, 9, 9)), b=None, c=thing("cat", (1, 1, 2, 2)), d=SIZE
        )
        (tmp_path / "VOC2007/JPEGImages/d.jpg").unlink()
        write_voc(tmp_path, "2012", e=SIZE.replace("50", "10000"), f=SIZE.replace("40", "1"))
        with (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").open("a") as file:
            file.write("a  1\n")
        images = open_voc(tmp_path, [("2007", "trainval"), ("2012", "trainval")])
        folder = "VOC2007/JPEGImages"
        found = check(images)
        assert found.problems == {
            NO_ANNOTATION: [f"{folder}/b.jpg"],
            NO_SIZE: [f"{folder}/c.jpg"],
            REPEATED: [f"{folder}/a.jpg"],
            findings.MISSING_IMAGE: [f"{folder}/d.jpg"],
            findings.OUTSIDE: [f"{folder}/a.jpg"],
            findings.NO_AREA: [f"{folder}/a.jpg"],
            findings.HUGE: ["VOC2012/JPEGImages/e.jpg"],
            findings.TINY: ["VOC2012/JPEGImages/f.jpg"],
        }
        assert found.lines()[0] == "5 images, 4 objects of 20 classes"
        assert f"1 {findings.MISSING_IMAGE}: {folder}/d.jpg" in found.lines()
        assert images.size(1) == (40, 50)
        assert images.target(0)["boxes"][0].tolist() == [0, 0, 60, 40]
        trained = images.training_target(0)
        assert trained["boxes"].tolist() == [[0, 0, 50, 40], [0, 0, 9, 9]]
        assert trained["labels"].tolist() == [8, 10]
        with pytest.raises(BadImage):
            images.read(2)

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("<size>", r"a\.xml is no whole XML"),
            (SIZE + "<object><name>cat</name></object>", r"a\.xml has an object \(cat\) without"),
            (SIZE + thing("cat", (1, 2, "x", 4)), "numbers"),
            (None, "none of the 1 images listed has one"),
        ],
    )
    def test_what_ends_a_run(self, tmp_path, content, what):
        write_voc(tmp_path, a=content)
        with pytest.raises(UserError, match=what):
            open_voc(tmp_path, [("2007", "trainval")])

    def test_missing_folders_and_lists(self, tmp_path):
        with pytest.raises(UserError, match="no VOC2007"):
            open_voc(tmp_path, [("2007", "trainval")])
        write_voc(tmp_path, a=SIZE)
        with pytest.raises(UserError, match=r"no list ImageSets/Main/test\.txt"):
            open_voc(tmp_path, [("2007", "test")])


class TestCoco:
    def test_known_numbers(self, tmp_path):
        triangle = [[1, 2, 11, 2, 1, 7]]
        notes = [
            note(3, category=7),
            note(1, image=9, segmentation=triangle),
            note(2, box=(0.5, 1.25, 3, 4), iscrowd=1),
        ]
        images = open_coco(write_coco(tmp_path, annotations=notes), "val2017")
        assert images.classes == ("cat", "dog")
        assert images.category_ids == (2, 7)
        assert [images.image_id(image) for image in range(2)] == [4, 9]
        assert images.name(0) == "val2017/a.jpg"
        assert images.size(0) == (20, 30)
        target = images.target(0)
        assert target["boxes"].tolist() == [[1, 2, 11, 7], [0.5, 1.25, 3.5, 5.25]]
        assert target["labels"].tolist() == [2, 1]
        assert target["area"].tolist() == [12.5, 12.5]
        assert target["iscrowd"].tolist() == [False, True]
        assert images.training_target(0)["labels"].tolist() == [2]
        assert images.training_target(0, masks=True)["masks"].shape == (0, 20, 30)
        assert images.training_target(1, masks=True)["masks"].shape == (1, 20, 30)
        assert images.read(0).shape == (3, 20, 30)

    def test_filtering_as_detectron2(self, tmp_path):
        write_coco(tmp_path, annotations=[note(1, iscrowd=1), note(2, image=9)])
        images = open_coco(tmp_path, "val2017")
        assert len(images) == 2
        kept = images.annotated()
        assert [kept.image_id(image) for image in range(len(kept))] == [9]
        assert kept.target(0)["labels"].tolist() == [1]

    def test_faults_are_counted_and_named(self, tmp_path):
        images = [*IMAGES, {"id": 4, "file_name": "twin.jpg", "height": 1, "width": 1}, {"id": 5, "file_name": "c.jpg"}]
        notes = [
            note(1, box=(25, 2, 10, 5), segmentation=[[1, 2, 9, 2, 9, 9]]),
            note(1, box=(2, 2, 0, 5), segmentation=[[1, 2, 9, 2, 9, 9]]),
            note(2, image=77),
            note(3, image=9, box=(40, 2, 5, 5), segmentation=[[1, 2, 3, 4]]),
            note(4, image=9, segmentation={"size": [20, 30], "counts": [3, 9]}),
            note(5, image=9, segmentation={"size": [30, 20], "counts": [600]}),
        ]
        write_coco(tmp_path, images=images, annotations=notes)
        (tmp_path / "val2017/b.jpg").unlink()
        found = open_coco(tmp_path, "val2017")
        assert found.size(1) == (20, 30)
        assert check(found).problems == {
            NO_SIZE: ["c.jpg"],
            REPEATED_IMAGE: ["twin.jpg"],
            REPEATED_OBJECT: ["annotation 1"],
            NO_IMAGE: ["annotation 2"],
            findings.MISSING_IMAGE: ["val2017/b.jpg"],
            findings.OUTSIDE: ["val2017/a.jpg"],
            findings.NO_AREA: ["val2017/a.jpg", "val2017/b.jpg"],
            findings.NO_OUTLINE: ["val2017/b.jpg"] * 3,
        }
        assert found.training_target(0)["boxes"].tolist() == [[25, 2, 30, 7]]
        assert found.training_target(2)["boxes"].tolist() == [[1, 2, 11, 7]] * 2
        assert len(found.training_target(2, masks=True)["boxes"]) == 0

    def test_what_ends_a_run(self, tmp_path):
        with pytest.raises(UserError, match="There is no"):
            open_coco(tmp_path, "val2017")
        file = write_coco(tmp_path, annotations=[note(1, category=3)]) / "annotations/instances_val2017.json"
        with pytest.raises(UserError, match="annotation 1 of image 4 has the category 3, which is none of the 2"):
            open_coco(tmp_path, "val2017")
        whole = file.read_text()
        for content, what in [
            (whole[: len(whole) // 2], "no whole JSON"),
            ("[]", "no instances file"),
            (whole.replace('"bbox"', '"box"').replace('"category_id": 3', '"category_id": 2'), "no bbox"),
            (whole.replace('"id": 9', '"id": "9"'), "`images` without an id"),
        ]:
            file.write_text(content)
            with pytest.raises(UserError, match=what) as error:
                open_coco(tmp_path, "val2017")
            assert str(file) in str(error.value)
            assert "\n" not in str(error.value)


class TestMasks:
    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
    def test_equal_to_pycocotools(self, tmp_path):
        reference = pytest.importorskip("pycocotools.mask")
        rng = np.random.default_rng(0)
        blob = rng.random((20, 30)) < 0.4
        encoded = reference.encode(np.asfortranarray(blob, np.uint8))
        runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, blob.T.ravel().astype(int), -1])), prepend=0).tolist()
        runs = runs[1:] if not blob[0, 0] else runs
        polygons = [
            [np.round(rng.uniform(-3, 33, 2 * corners), 2).tolist() for corners in rng.integers(3, 9, parts)]
            for parts in rng.integers(1, 4, 200)
        ]
        outlines = [
            *polygons,
            {"size": [20, 30], "counts": encoded["counts"].decode()},
            {"size": [20, 30], "counts": runs},
        ]
        notes = [note(number, segmentation=outline) for number, outline in enumerate(outlines, start=1)]
        images = open_coco(write_coco(tmp_path, annotations=notes), "val2017")
        masks = images.masks(0).numpy()
        assert masks.dtype == np.uint8
        assert (masks[-2:] == blob).all()
        for outline, mask in zip(polygons, masks):
            expected = reference.decode(reference.merge(reference.frPyObjects(outline, 20, 30)))
            np.testing.assert_array_equal(mask, expected)

    def test_bad_outlines_are_none(self, tmp_path):
        bad = [
            None,
            [],
            [[1, 2, 3, 4]],
            [[1, 2, 3, 4, 5, 6, 7]],
            [["1", 2, 3, 4, 5, 6]],
            [[1, 2, 3, 4, float("nan"), 6]],
            [[1, 2, 3, 4, 1e12, 6]],
            {"size": [20, 30], "counts": "~~"},
            {"size": [20, 30], "counts": "P1"},
            {"size": [20, 30], "counts": [-5, 605]},
            {"counts": [600]},
        ]
        good = note(99, segmentation=[[1, 2, 3, 4], [0, 0, 5, 0, 5, 5, 0, 5]])
        notes = [note(number, segmentation=outline) for number, outline in enumerate(bad)]
        images = open_coco(write_coco(tmp_path, annotations=[*notes, good]), "val2017")
        assert images.masks(0).sum(dim=(1, 2)).tolist() == [0] * len(bad) + [25]
        assert images.training_target(0, masks=True)["masks"].sum() == 25
        assert not open_coco(tmp_path, "val2017", masks=False).has_masks


def test_a_changed_target_changes_nothing_else(tmp_path):
    write_voc(tmp_path, a=SIZE + thing("cat", (1, 1, 9, 9)))
    images = open_voc(tmp_path, [("2007", "trainval")])
    images.target(0)["boxes"].zero_()
    images.training_target(0)["boxes"].zero_()
    assert images.target(0)["boxes"].tolist() == [[0, 0, 9, 9]]
