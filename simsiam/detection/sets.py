"""Detectron2's names of sets (voc_2007_trainval, coco_2017_val) -> what to train on, what to test on, and its AP."""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simsiam.data.sources.scenes import scenes_root
from simsiam.detection.annotations import DetectionSet
from simsiam.detection.average_precision import THRESHOLDS, AveragePrecision, average_precision, metric_of_year
from simsiam.detection.coco import annotation_file, open_coco
from simsiam.detection.coco_metrics import coco_metrics
from simsiam.detection.detections import Detections
from simsiam.detection.findings import MISSING_IMAGE, check
from simsiam.detection.voc import open_voc
from simsiam.errors import UserError
from simsiam.settings.detect import Detect

_NAME = re.compile(r"(voc|coco)_(\d{4})_(\w+)")
_DEBUG_IMAGES = 8


class DetectionData(NamedTuple):
    """What a run trains on and tests on.

    Attributes:
        year: of VOC's test set, which decides its AP; None for COCO.
        test_file: COCO's JSON of the test set; None for VOC.
        told: what a person should know of each set, by `train` and `test`.
        sha256: of names, boxes and labels of both, in hex.
    """

    train: DetectionSet
    test: DetectionSet
    year: int | None
    test_file: Path | None
    told: dict[str, str]
    sha256: str

    def score(self, detections: Detections, *, masks: bool) -> "Scores":
        """The AP of all ranks' detections on the test set."""
        if self.year is not None:
            truth = [self.test.target(image) for image in range(len(self.test))]
            found = average_precision(detections, truth, len(self.test.classes), metric_of_year(self.year))
            return Scores({"AP50": found.ap50, "AP": found.ap, "AP75": found.ap75}, _by_class(found, self.test.classes))
        kinds = {"bbox": "", **({"segm": "mask_"} if masks else {})}
        ids = [int(self.test.image_id(image)) for image in range(len(self.test))]
        found = coco_metrics(
            self.test_file, detections, list(kinds), image_ids=ids, category_ids=self.test.category_ids
        )
        figures = {f"{before}{name}": value for kind, before in kinds.items() for name, value in found[kind].items()}
        return Scores({name: value for name, value in figures.items() if not math.isnan(value)}, {})


class Scores(NamedTuple):
    """AP in percent by name: AP50, AP, AP75 and for COCO APs, APm, APl, and mask_AP50 and so on; and VOC's by class."""

    figures: dict[str, float]
    by_class: dict[str, dict[str, float]]


def main_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Of some figures those that papers report: AP50, AP and AP75 of boxes, and of masks where there are any."""
    names = ("AP50", "AP", "AP75")
    return {name: figures[name] for name in (*names, *(f"mask_{n}" for n in names)) if name in figures}


def open_sets(settings: Detect) -> DetectionData:
    """Reads and checks the annotations of both sets; no image is opened.

    Raises UserError for a set that is not there, has nothing to learn or to find, or does not go with the other.
    """
    if not settings.data:
        raise UserError("No dataset is given: set --data or DATA to a folder of VOC or COCO, or try --data shapes")
    train_names, (test_kind, test_year, test_list) = _parsed(settings.train_sets), _parsed((settings.test_set,))[0]
    kinds = {kind for kind, _, _ in train_names} | {test_kind}
    if len(kinds) != 1:
        raise UserError(
            f"--train-sets {' '.join(settings.train_sets)} and --test-set {settings.test_set} are of different "
            "layouts; take VOC's or COCO's for both"
        )
    if settings.mask and test_kind == "voc":
        raise UserError("--mask needs outlines, which VOC's annotations do not have; take COCO's, or --mask false")
    root = scenes_root(test_kind) if settings.data == "shapes" else Path(settings.data)
    if test_kind == "voc":
        train = open_voc(root, [(year, name) for _, year, name in train_names])
        test, test_file = open_voc(root, [(test_year, test_list)]), None
    else:
        if len(train_names) > 1:
            raise UserError(f"--train-sets {' '.join(settings.train_sets)}: COCO's are trained on one at a time")
        root = root / "coco" if (root / "coco").is_dir() else root
        (_, year, name), test_split = train_names[0], f"{test_list}{test_year}"
        train = open_coco(root, f"{name}{year}", masks=settings.mask)
        test = open_coco(root, test_split, masks=settings.mask or settings.visualize > 0)
        test_file = annotation_file(root, test_split)
    if train.classes != test.classes:
        raise UserError(
            f"--train-sets and --test-set have different classes: {_differing(train.classes, test.classes)}"
        )
    told = {name: _checked(name, images) for name, images in (("train", train), ("test", test))}
    train = train.annotated()
    if not len(train):
        raise UserError(f"No image of --train-sets {' '.join(settings.train_sets)} has an object to learn from")
    if settings.debug:
        train, test = (_few(images) for images in (train, test))
    return DetectionData(
        train, test, int(test_year) if test_kind == "voc" else None, test_file, told, _sha256(train, test)
    )


def _parsed(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    found = [(name, _NAME.fullmatch(name)) for name in names]
    wrong = [name for name, match in found if match is None]
    if wrong or not found:
        raise UserError(
            f"There is no set called {' '.join(wrong) or 'nothing'}; name them as voc_2007_trainval, "
            "voc_2012_trainval, voc_2007_test, coco_2017_train or coco_2017_val"
        )
    return [match.groups() for _, match in found]


def _checked(name: str, images: DetectionSet) -> str:
    """What is wrong with a set; an error where nothing of it can be used."""
    findings = check(images)
    if len(findings.problems.get(MISSING_IMAGE, ())) == len(images):
        raise UserError(
            f"None of the {len(images):,} images of the {name} set is there, such as {images.root / images.name(0)}; "
            "unpack the images beside their annotations"
        )
    if findings.objects == findings.crowds + findings.difficult:
        raise UserError(f"The {name} set has {findings.objects:,} objects, and none that counts; check its annotations")
    return "; ".join(findings.lines())


def _few(images: DetectionSet) -> DetectionSet:
    return images.take(np.unique(np.linspace(0, len(images) - 1, min(_DEBUG_IMAGES, len(images))).astype(np.int64)))


def _differing(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    strange = [name for name in (*ours, *theirs) if (name in ours) != (name in theirs)]
    return f"{', '.join(strange[:3])} in one alone" if strange else "their order"


def _by_class(found: AveragePrecision, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    rows = {"AP50": found.per_class[THRESHOLDS.index(0.5)], "AP": found.per_class.mean(0)}
    rows["AP75"] = found.per_class[THRESHOLDS.index(0.75)]
    return {name: {key: float(row[c]) for key, row in rows.items()} for c, name in enumerate(classes)}


def _sha256(*sets: DetectionSet) -> str:
    digest = hashlib.sha256()
    for images in sets:
        digest.update(os.fsencode("\0".join(images.name(image) for image in range(len(images)))))
        rows = np.concatenate([images.objects_of(image) for image in range(len(images))])
        digest.update(np.ascontiguousarray(images.objects.boxes[rows], "<f4").tobytes())
        digest.update(np.ascontiguousarray(images.objects.labels[rows], "<i8").tobytes())
    return digest.hexdigest()
