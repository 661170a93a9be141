"""Images and annotations from elsewhere are refused, or left out and counted; nothing waits and nothing unfolds."""

import json
import os
import time

import pytest

from simsiam.data.check import odd_bits
from simsiam.data.decode import decode, image_size
from simsiam.data.image_set import BadImage
from simsiam.data.sources.folder import FolderImages
from simsiam.detection.coco import open_coco
from simsiam.detection.voc import open_voc
from tests.data.test_decode import encode, picture
from tests.security import hostile
from tests.security.conftest import refused


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused(place):
    for number, (name, data) in enumerate(hostile.image_bombs().items()):
        with pytest.raises(BadImage):
            pytest.fail(f"{name} was read: {decode(data).shape}")
        (place / f"{number:02d}.jpg").write_bytes(data)
    images = FolderImages(place)
    for sample in range(len(images)):
        image_size(images.read_bytes(sample))
        odd_bits(images.name(sample), images.read_bytes(sample))
        with pytest.raises(BadImage):
            images.read(sample)


def test_frames_are_not_counted():
    for data, side in [(hostile.gif_of_frames(100_000), 1), (hostile.round_tiff(), 8)]:
        began = time.process_time()
        assert decode(data).shape == (3, side, side)
        assert time.process_time() - began < 1


def test_what_is_no_file_is_a_bad_image(place):
    (place / "good.png").write_bytes(encode(picture(), "PNG"))
    os.mkfifo(place / "pipe.png")
    (place / "zeros.png").symlink_to("/dev/zero")
    (place / "gone.png").symlink_to(place / "nothing.png")
    with (place / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    images = FolderImages(place)
    bad = []
    for sample in range(len(images)):
        try:
            images.read(sample)
        except BadImage:
            bad.append(images.name(sample))
    assert bad == ["gone.png", "pipe.png", "sparse.png", "zeros.png"]
    (place / "round.png").symlink_to(place / "round.png")
    refused(lambda: FolderImages(place), "a link to itself", "round.png cannot be listed")


def write_voc(place, annotation: bytes, names: str = "a\n"):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (place / "VOC2007" / folder).mkdir(parents=True, exist_ok=True)
    (place / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_text(names)
    (place / "VOC2007" / "Annotations" / "a.xml").write_bytes(annotation)


def test_xml(place):
    for name, data in hostile.hostile_xml().items():
        write_voc(place, data)
        refused(lambda: open_voc(place, [("2007", "train")]), name, "is no whole XML file")


def test_deep_xml_is_only_deep(place):
    write_voc(place, b"<annotation>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</annotation>")
    assert len(open_voc(place, [("2007", "train")])) == 1


@pytest.mark.parametrize("name", ["../../outside/x", "/etc/passwd", "a/../../../x", "a\0b"])
def test_lists_of_voc_that_climb(place, name):
    write_voc(place, b"<annotation/>", f"{name}\n")
    refused(lambda: open_voc(place, [("2007", "train")]), name, "not below")


def test_sizes_that_nobody_has(place):
    write_voc(place, b"<annotation><size><width>9999999</width><height>9999999</height></size></annotation>")
    assert open_voc(place, [("2007", "train")]).size(0) == (0, 0)
    write_coco(place, images=[{"id": 1, "file_name": "a.jpg", "height": 1 << 40, "width": 1 << 40}])
    assert open_coco(place, "val2017").size(0) == (0, 0)


IMAGE = {"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}
NOTE = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 5, 1, 5, 5]]}


def write_coco(place, text: bytes = b"", **content):
    content = {"images": [IMAGE], "annotations": [NOTE], "categories": [{"id": 1, "name": "a"}], **content}
    (place / "annotations").mkdir(exist_ok=True)
    (place / "annotations" / "instances_val2017.json").write_bytes(text or json.dumps(content).encode())


COCO = {
    **{
        name: {"images": [IMAGE | {"file_name": name}]}
        for name in ("../x.jpg", "/etc/passwd", "a/../../x", "a\0", "\ud800")
    },
    "id of 100 bits": {"images": [IMAGE | {"id": 1 << 100}]},
    "id that is a list": {"annotations": [NOTE | {"id": [1]}]},
    "image that is a list": {"annotations": [NOTE | {"image_id": [1]}]},
    "huge corner": {"annotations": [NOTE | {"bbox": [10**400, 1, 1, 1]}]},
    "class that is a list": {"annotations": [NOTE | {"category_id": [1]}]},
}


def test_coco(place):
    for name, wrong in COCO.items():
        write_coco(place, **wrong)
        refused(lambda: open_coco(place, "val2017"), name, "instances_val2017.json")
    for name, text in {"deep": b"[" * 1_000_000, "digits": b"9" * 1_000_000, "nul": b"\0", "latin1": b'"\xe9"'}.items():
        write_coco(place, text)
        refused(lambda: open_coco(place, "val2017"), name, "instances_val2017.json")


def test_outlines_that_unfold(place):
    """They are none: no mask is larger than its image, and no run length goes on for ever."""
    outlines = [
        {"size": [1 << 30, 1 << 30], "counts": [1 << 60]},
        {"size": [9, 9], "counts": [1 << 60, 81]},
        {"size": [9, 9], "counts": "\xff" * 1000},
        {"size": [9, 9], "counts": "o" * 1_000_000},
        [[1e300, 1, 5, 1, 5, 5]],
    ]
    write_coco(place, annotations=[NOTE | {"id": n, "segmentation": o} for n, o in enumerate(outlines)])
    masks = open_coco(place, "val2017").masks(0)
    assert masks.shape == (len(outlines), 9, 9)
    assert not masks.any()
