"""PASCAL VOC folders as published: an XML file an image, lists of images for each year."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from simsiam.data.decode import MAX_PIXELS
from simsiam.data.index import Strings
from simsiam.data.storage import is_inside
from simsiam.detection.annotations import NO_SIZE, DetectionSet, Objects, stored_size
from simsiam.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASSES_FILE = "classes.txt"
"""Where a set of other classes names them, one a line, beside its VOC2007."""
NO_ANNOTATION = "without an annotation file (left out)"
REPEATED = "listed twice (taken once)"
_LIST = "ImageSets/Main/{}.txt"
_MOST_XML_BYTES = 4 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_voc(root: str | Path, sets: Sequence[tuple[str, str]]) -> DetectionSet:
    """The images of some lists, one list after the other, each image once.

    As Detectron2 reads them: corners are 1-based and inclusive, so 1 is taken off xmin and ymin alone, and a box from
    1 to W covers the image from 0 to W; difficult objects are kept and marked. The classes are those of the set's
    classes.txt where it has one, label 1 first, else VOC's twenty.

    Args:
        root: the folder with VOC2007 and VOC2012 in it, by itself or in VOCdevkit; or one of these two.
        sets: (year, list) such as ("2007", "trainval").

    Raises:
        UserError: a folder or list is missing or names no image with an annotation, an XML file is damaged, or an
            object's class is not among the classes.
    """
    years = [_find(Path(root), year, split) for year, split in sets]
    base = years[0].parent
    reader = _Reader(base, _classes_of(base) or CLASSES)
    for folder, (_, split) in zip(years, sets):
        reader.read_list(folder, split)
    return reader.finished()


def _find(root: Path, year: str, split: str) -> Path:
    """The folder of a year that has the list."""
    name = f"VOC{year}"
    places = [root / name, root / "VOCdevkit" / name]
    resolved = root.resolve()
    if resolved.name.startswith("VOC2"):
        places.append(resolved.parent / name)
    for folder in places:
        if (folder / _LIST.format(split)).is_file():
            return folder
    there = next((folder for folder in places if folder.is_dir()), None)
    if there is None:
        raise UserError(f"There is no {name} in {root}; give the folder that {name} was unpacked into")
    raise UserError(f"{there} has no list {_LIST.format(split)}; unpack the archive that has the {split} images there")


def _classes_of(base: Path) -> tuple[str, ...]:
    try:
        lines = (base / CLASSES_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(line.strip() for line in lines if line.strip())


def _plain_xml(file: Path) -> bytes:
    """An XML file without a document type, whose entities could unfold to any size. Raises ValueError for another."""
    with file.open("rb") as opened:
        data = opened.read(_MOST_XML_BYTES + 1)
    if len(data) > _MOST_XML_BYTES:
        raise ValueError(f"it has more than {_MOST_XML_BYTES:,} bytes")
    if b"<!DOCTYPE" in data or b"\0" in data:  # zeros: UTF-16, in which it would look otherwise
        raise ValueError("it declares a document type, or is not in UTF-8")
    return data


class _Box(NamedTuple):
    """An object of an XML file: class number, corners with the published 1-based numbers made 0-based, mark."""

    label: int
    corners: list[float]
    difficult: bool


class _Reader:
    """Reads lists, and the XML files of what they list, into the arrays of a set."""

    def __init__(self, base: Path, classes: Sequence[str]) -> None:
        self._base, self._classes = base, classes
        self._labels_of = {name: label for label, name in enumerate(classes, start=1)}
        self._paths: dict[str, str] = {}  # image -> its id
        self._sizes, self._counts = array("i"), array("q")
        self._boxes, self._labels, self._difficult = array("f"), array("q"), array("b")
        self._noted: dict[str, list[str]] = {NO_ANNOTATION: [], NO_SIZE: [], REPEATED: []}

    def read_list(self, folder: Path, split: str) -> None:
        """The images of a list; a class's own list has a second column, which is not looked at."""
        file = folder / _LIST.format(split)
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            stem = line.split()[0]
            if not is_inside(stem):
                raise UserError(f"{file} names {stem[:200]!r}, which is not below {folder}; correct the list")
            path = f"{folder.name}/JPEGImages/{stem}.jpg"
            if path in self._paths:
                self._noted[REPEATED].append(path)
            else:
                self._read(path, folder / "Annotations" / f"{stem}.xml", stem)

    def finished(self) -> DetectionSet:
        """The set of everything read. Raises UserError where that is nothing."""
        if not self._paths:
            missing = self._noted[NO_ANNOTATION]
            why = f"none of the {len(missing):,} images listed has one" if missing else "the lists are empty"
            raise UserError(f"There is no annotation to use in {self._base}: {why}; unpack the annotations there")
        boxes = np.array(self._boxes, np.float32).reshape(-1, 4)
        objects = Objects(
            boxes=boxes,
            labels=np.array(self._labels, np.int64),
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
            is_crowd=np.zeros(len(boxes), bool),
            is_difficult=np.array(self._difficult, bool),
        )
        return DetectionSet(
            self._base,
            self._classes,
            Strings.of(self._paths),
            Strings.of(self._paths.values()),
            np.array(self._sizes, np.int32).reshape(-1, 2),
            np.cumsum([0, *self._counts], dtype=np.int64),
            objects,
            noted=self._noted,
        )

    def _read(self, path: str, file: Path, stem: str) -> None:
        try:
            annotation = ElementTree.fromstring(_plain_xml(file))
        except FileNotFoundError:
            self._noted[NO_ANNOTATION].append(path)  # left out: trained on, its objects would count as background
            return
        # ValueError: an encoding that is none.
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            raise UserError(f"{file} is no whole XML file ({error}); unpack it again") from None
        boxes = [self._box(found, file) for found in annotation.findall("object")]
        self._paths[path] = stem
        self._sizes.extend(self._size(annotation, path))
        self._counts.append(len(boxes))
        for box in boxes:
            self._labels.append(box.label)
            self._boxes.extend(box.corners)
            self._difficult.append(box.difficult)

    def _box(self, found: ElementTree.Element, file: Path) -> _Box:
        name = (found.findtext("name") or "").strip()
        if name not in self._labels_of:
            raise UserError(
                f"{file} has an object of the class {name!r}, which is none of the {len(self._classes)} classes "
                f"({', '.join(self._classes[:3])}, ...); correct it, or name the classes of the set in "
                f"{self._base / CLASSES_FILE}, one a line"
            )
        box = found.find("bndbox")  # a child: the parts of a person have boxes of their own below it
        try:
            left, top, right, bottom = (float(box.findtext(corner)) for corner in _CORNERS)
            difficult = int(found.findtext("difficult") or 0) != 0
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{file} has an object ({name}) without xmin, ymin, xmax and ymax that are numbers in a bndbox, or "
                "with a difficult that is neither 0 nor 1; correct it"
            ) from None
        return _Box(self._labels_of[name], [left - 1, top - 1, right, bottom], difficult)

    def _size(self, annotation: ElementTree.Element, path: str) -> tuple[int, int]:
        """Height and width that the annotation says, else the image; (0, 0) where neither does."""
        try:
            height, width = (int(float(annotation.findtext(f"size/{side}"))) for side in ("height", "width"))
        except (TypeError, ValueError, OverflowError):
            height = width = 0
        if height > 0 and width > 0 and height * width <= MAX_PIXELS:
            return height, width
        self._noted[NO_SIZE].append(path)
        return stored_size(self._base / path)
