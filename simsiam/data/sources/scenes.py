"""`shapes` for detection: scenes with boxes and masks, in the layouts of PASCAL VOC 2007 and COCO 2017."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

from simsiam.data.cache import cache_root
from simsiam.data.sources.scene_drawing import Scene, draw_scene
from simsiam.data.sources.shapes import CLASSES
from simsiam.data.whole_folder import whole_folder

Layout = Literal["voc", "coco"]
_VERSION = "scenes-v2"  # the cache folder: raise it whenever a byte of any scene changes
_STREAMS = {"train": 2, "val": 3}  # of random numbers; 0 and 1 are those of `shapes`
_HELD_OUT = 5  # one in so many of VOC's trainval is in val, the others in train
_PREVIEWED, _PER_ROW, _ENLARGED = 12, 4, 2
_COLOURS = ("red", "lime", "cyan", "yellow", "magenta", "orange", "white", "deepskyblue", "springgreen", "pink")


def make_scenes(root: Path, layout: Layout = "voc", train: int = 1000, val: int = 200, seed: int = 0) -> None:
    """Write a set of scenes, the same ones in either layout.

    voc: ROOT/VOC2007 with the lists trainval (all of train), train and val (four fifths and one fifth of it) and test
    (all of val); ROOT/classes.txt. coco: ROOT/annotations/instances_{train,val}2017.json, ROOT/{train,val}2017. An
    object that is less than 30% visible is `difficult` in VOC and a crowd in COCO, so evaluators ignore it in both.
    ROOT/preview.png shows the first scenes with their boxes.

    The folder appears whole or not at all, as with `make_shapes`, and the same arguments give the same scenes for the
    same version of this package, numpy and PIL.

    Args:
        root: the folder to make; left as it is where it holds such a set already.
        train, val: scenes in each split.
        seed: another one draws other scenes of the same classes.

    Raises:
        UserError: the folder cannot be written, or is there with something else in it.
    """
    writers: dict[Layout, Callable[[Path, int, int, int], None]] = {"voc": _write_voc, "coco": _write_coco}
    root = Path(root)
    made = partial(has_scenes, root, layout)
    with whole_folder(root, made, what="scenes", remedy="give a new or empty folder") as draft:
        if draft is not None:
            writers[layout](draft, train, val, seed)
            _write_preview(draft / "preview.png", scenes("train", min(train, _PREVIEWED), seed))


def scenes_root(layout: Layout) -> Path:
    """The set's folder in the cache, made in seconds if it is missing."""
    root = cache_root() / f"{_VERSION}-{layout}"
    make_scenes(root, layout)
    return root


def scenes(split: Literal["train", "val"], count: int, seed: int = 0) -> Iterator[Scene]:
    """The first scenes of a split, each a function of seed, split and its number alone."""
    for number in range(count):
        key = [(seed << 8) + _STREAMS[split], number]
        yield draw_scene(np.random.Generator(np.random.Philox(key=key)))


def has_scenes(root: Path, layout: Layout) -> bool:
    """Whether a folder holds a set of a layout."""
    wanted = {"voc": ("VOC2007",), "coco": ("annotations", "train2017", "val2017")}[layout]
    return all((root / name).is_dir() for name in wanted)


def _write_voc(root: Path, train: int, val: int, seed: int) -> None:
    year = root / "VOC2007"
    images, annotations, lists = (year / name for name in ("JPEGImages", "Annotations", "ImageSets/Main"))
    for folder in (images, annotations, lists):
        folder.mkdir(parents=True)
    stems: dict[str, list[str]] = {"train": [], "val": []}
    for split, count in (("train", train), ("val", val)):
        for number, scene in enumerate(scenes(split, count, seed)):
            stem = f"{'test' if split == 'val' else 'train'}_{number:06d}"
            _save(images / f"{stem}.jpg", scene)
            ElementTree.ElementTree(_voc_annotation(stem, scene)).write(annotations / f"{stem}.xml")
            stems[split].append(stem)
    cut = train - train // _HELD_OUT
    trainval = stems["train"]
    for name, listed in (
        *(("trainval", trainval), ("train", trainval[:cut]), ("val", trainval[cut:])),
        ("test", stems["val"]),
    ):
        (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in listed))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def _voc_annotation(stem: str, scene: Scene) -> ElementTree.Element:
    """What VOC's XML says of a scene; corners are 1-based and inclusive."""
    height, width, _ = scene.pixels.shape
    root = ElementTree.Element("annotation")
    _add(root, folder="VOC2007", filename=f"{stem}.jpg")
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for thing in scene.objects:
        found = ElementTree.SubElement(root, "object")
        _add(found, name=CLASSES[thing.label], pose="Unspecified", truncated=0, difficult=int(thing.hidden))
        left, top, right, bottom = thing.box
        _add(ElementTree.SubElement(found, "bndbox"), xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
    ElementTree.indent(root)
    return root


def _add(parent: ElementTree.Element, **children: object) -> None:
    for name, text in children.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _write_coco(root: Path, train: int, val: int, seed: int) -> None:
    (root / "annotations").mkdir()
    for split, count in (("train", train), ("val", val)):
        folder = root / f"{split}2017"
        folder.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, scene in enumerate(scenes(split, count, seed), start=1):
            height, width, _ = scene.pixels.shape
            name = f"{image_id:012d}.jpg"
            _save(folder / name, scene)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for record in _coco_annotations(scene):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **record})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _coco_annotations(scene: Scene) -> Iterator[dict[str, Any]]:
    """What COCO's JSON says of each object, its mask as compressed run lengths."""
    for thing in scene.objects:
        left, top, right, bottom = thing.box
        encoded = coco_mask.encode(np.asfortranarray(thing.mask, np.uint8))
        yield {
            "category_id": thing.label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": int(thing.mask.sum()),
            "iscrowd": int(thing.hidden),
            "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
        }


def _save(file: Path, scene: Scene) -> None:
    Image.fromarray(scene.pixels).save(file, quality=90)


def _write_preview(file: Path, shown: Iterator[Scene]) -> None:
    """A grid of scenes with the boxes and class names drawn in, enlarged."""
    drawn = [_with_boxes(scene) for scene in shown]
    height, width = (max(image.shape[axis] for image in drawn) for axis in (1, 2))
    padded = [
        torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in drawn
    ]
    to_pil_image(make_grid(padded, nrow=_PER_ROW, padding=4)).save(file)


def _with_boxes(scene: Scene) -> torch.Tensor:
    image = torch.from_numpy(scene.pixels.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)).permute(2, 0, 1)
    boxes = torch.tensor([thing.box for thing in scene.objects]) * _ENLARGED
    labels = [thing.label for thing in scene.objects]
    return draw_bounding_boxes(
        image,
        boxes,
        [CLASSES[label] for label in labels],
        colors=[_COLOURS[label] for label in labels],
        width=2,
    )
