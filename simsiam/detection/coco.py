"""COCO folders as published: one JSON file a split, images beside it."""

import json
from array import array
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from simsiam.data.decode import MAX_PIXELS
from simsiam.data.index import Strings
from simsiam.data.storage import is_inside
from simsiam.detection.annotations import NO_SIZE, DetectionSet, Objects, stored_size
from simsiam.detection.segments import SegmentsBuilder
from simsiam.errors import UserError

REPEATED_IMAGE = "with the id of another (left out)"
REPEATED_OBJECT = "annotations with the id of another (kept)"
NO_IMAGE = "annotations of an image that is not in the file (left out)"


def open_coco(root: str | Path, split: str, *, masks: bool = True) -> DetectionSet:
    """The images of ROOT/annotations/instances_SPLIT.json, files in ROOT/SPLIT, in the order of their ids.

    Labels are 1, 2, ... in the order of the categories' ids, of which COCO's skip some; `category_ids` has those.
    Crowds are kept and marked.

    Args:
        split: train2017 or val2017.
        masks: keep the outlines, for COCO's train split a third of a gigabyte.

    Raises:
        UserError: a file is missing, cut short or no instances file, or an object's category is not in it.
    """
    root = Path(root)
    file = annotation_file(root, split)
    content = _load(file)
    categories = _sorted(content["categories"], file, "categories")
    numbers = [category["id"] for category in categories]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{file} has two categories of one id; number each of `categories` differently")
    reader = _Reader(file, {number: label for label, number in enumerate(numbers, start=1)}, masks)
    reader.read_images(_sorted(content["images"], file, "images"))
    reader.read_objects(content["annotations"])
    return DetectionSet(
        root,
        [str(category.get("name", category["id"])) for category in categories],
        Strings.of(f"{split}/{name}" for name in reader.names),
        reader.ids,
        reader.sizes,
        reader.firsts,
        reader.objects,
        category_ids=numbers,
        noted=reader.noted,
    )


def annotation_file(root: Path, split: str) -> Path:
    """Where COCO's annotations of a split are."""
    return root / "annotations" / f"instances_{split}.json"


class _Reader:
    """Turns the records of a file into the arrays of a set: the images first, then their objects."""

    def __init__(self, file: Path, labels: dict[int, int], masks: bool) -> None:
        self._file, self._labels, self._masks = file, labels, masks
        self.noted: dict[str, list[str]] = {NO_SIZE: [], REPEATED_IMAGE: [], REPEATED_OBJECT: [], NO_IMAGE: []}

    def read_images(self, images: list[dict[str, Any]]) -> None:
        """Takes the images, sorted by id."""
        self.names, sizes = [], []
        self._row_of: dict[int, int] = {}
        folder = self._file.parents[1] / self._file.stem.removeprefix("instances_")
        for image in images:
            name = image.get("file_name")
            if not isinstance(name, str):
                raise UserError(f"{self._file}: image {image['id']} has no file_name; correct it or fetch it again")
            if not is_inside(name) or not _is_number(image["id"]):
                raise UserError(
                    f"{self._file} has an image {name[:200]!r} that is not below {folder}, or an id beyond 64 bits; "
                    "correct it"
                )
            if image["id"] in self._row_of:
                self.noted[REPEATED_IMAGE].append(name)
                continue
            self._row_of[image["id"]] = len(self.names)
            self.names.append(name)
            size = image.get("height"), image.get("width")
            if not all(isinstance(side, int) and side > 0 for side in size) or size[0] * size[1] > MAX_PIXELS:
                self.noted[NO_SIZE].append(name)
                size = stored_size(folder / name)
            sizes.append(size)
        if not self.names:
            raise UserError(f"{self._file} has no image; fetch it again")
        self.ids = np.fromiter(self._row_of, np.int64, len(self._row_of))
        self.sizes = np.array(sizes, np.int32)

    def read_objects(self, annotations: list[dict[str, Any]]) -> None:
        """Takes the annotations, in the file's order for each image."""
        boxes, labels, areas, crowds = array("d"), array("q"), array("d"), array("b")
        segments = SegmentsBuilder()
        counts = np.zeros(len(self.names), np.int64)
        sizes = self.sizes.tolist()
        for row, annotation in self._by_image(annotations):
            counts[row] += 1
            labels.append(self._label(annotation))
            box, area, crowd = self._numbers(annotation)
            boxes.extend(box)
            areas.append(area)
            crowds.append(crowd)
            if self._masks:
                segments.add(annotation.get("segmentation"), *sizes[row])
        corners = np.array(boxes, np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        outlines = segments.build()
        self.firsts = np.concatenate([[0], np.cumsum(counts)])
        self.objects = Objects(
            boxes=corners.astype(np.float32),
            labels=np.array(labels, np.int64),
            areas=np.array(areas, np.float32),
            is_crowd=np.array(crowds, bool),
            is_difficult=np.zeros(len(labels), bool),
            segments=outlines if self._masks and outlines.present().any() else None,
        )

    def _by_image(self, annotations: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """(row of the image, annotation), one image after the other."""
        known, seen = [], set()
        for place, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise UserError(f"{self._file}: annotation number {place} is no object; fetch the file again")
            identity, image = annotation.get("id", f"number {place}"), annotation.get("image_id")
            if not isinstance(identity, int | str) or not isinstance(image, int | str | None):
                raise UserError(f"{self._file}: annotation number {place} has a list for an id; fetch the file again")
            row = self._row_of.get(image)
            if row is None:
                self.noted[NO_IMAGE].append(f"annotation {identity}")
                continue
            if identity in seen:
                self.noted[REPEATED_OBJECT].append(f"annotation {identity}")
            seen.add(identity)
            known.append((row, annotation))
        return sorted(known, key=itemgetter(0))

    def _label(self, annotation: dict[str, Any]) -> int:
        try:
            return self._labels[annotation["category_id"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{self._file}: annotation {annotation.get('id')} of image {annotation['image_id']} has the category "
                f"{annotation.get('category_id')!r}, which is none of the {len(self._labels)} in `categories`; add it "
                "there or take the annotation out"
            ) from None

    def _numbers(self, annotation: dict[str, Any]) -> tuple[list[float], float, bool]:
        """Box as x, y, width, height; area, the box's where there is none; whether it is a crowd."""
        try:
            box = [float(number) for number in annotation["bbox"]]
            _, _, width, height = box
            return box, float(annotation.get("area", width * height)), bool(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"{self._file}: annotation {annotation.get('id')} of image {annotation['image_id']} has no bbox of "
                "four numbers x, y, width, height, or an area that is no number; correct it"
            ) from None


def _load(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of an instances file."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"There is no {file}; give the folder that holds COCO's annotations/ and image folders"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); make it readable") from None
    except (ValueError, RecursionError) as error:  # cut short, or no JSON, or no UTF-8
        raise UserError(f"{file} is no whole JSON file ({error}); fetch it again") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise UserError(f"{file} is no instances file of COCO, which has lists of {', '.join(lists)}; fetch that one")
    return content


def _is_number(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def _sorted(records: list[Any], file: Path, what: str) -> list[dict[str, Any]]:
    """Images or categories in the order of their ids."""
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("id"), int):
            raise UserError(f"{file} has an entry of `{what}` without an id that is an integer; correct it")
    return sorted(records, key=itemgetter("id"))
