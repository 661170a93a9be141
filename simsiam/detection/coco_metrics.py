"""Box and mask AP on COCO, by faster-coco-eval, and results in the format that the official tools score."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsiam.atomic import write_atomically
from simsiam.detection.detections import Detections, Rle
from simsiam.errors import UserError

_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of the library's statistics


def encode_masks(masks: Tensor | np.ndarray) -> list[Rle]:
    """Masks bool or uint8 (n, H, W) as n run lengths in COCO's compressed form, with `counts` a string.

    Raises ValueError for other types: a probability is no mask before somebody has set its threshold.
    """
    from faster_coco_eval import mask

    given = torch.as_tensor(masks)
    if given.dtype not in (torch.bool, torch.uint8) or given.ndim != 3:
        raise ValueError(f"masks are {given.dtype} {tuple(given.shape)}; they must be bool or uint8 (n, H, W)")
    if not len(given):
        return []
    # Run lengths go down the columns; turned on the device of the masks, and seen as (H, W, n), they lie in that order.
    columns = given.ne(0).transpose(1, 2).contiguous().cpu().numpy().view(np.uint8).transpose(2, 1, 0)
    return [{"size": [*map(int, rle["size"])], "counts": _text(rle["counts"])} for rle in mask.encode(columns)]


def coco_metrics(
    ground_truth: Mapping[str, Any] | str | Path,
    detections: Detections,
    iou_types: Sequence[str] = ("bbox", "segm"),
    *,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
) -> dict[str, dict[str, float]]:
    """AP, AP50, AP75, APs, APm, APl of each type, in percent; nan where there is no object of that size.

    Only the images and categories given count. The ground truth is left as it is. In a copy its annotations get new
    ids, for the library (pycocotools too) takes an object with id 0 as never found, and where `area` is missing it is
    the box's.

    Args:
        ground_truth: an `instances_*.json`, or what is in one; crowds are treated as COCO does.
        detections: gathered from all ranks.
        image_ids: COCO's id of each image index.
        category_ids: COCO's id of labels 1, 2, ...

    Raises UserError for a file that is not there or no JSON, ValueError where indices, labels or masks do not fit.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not isinstance(ground_truth, Mapping):
        ground_truth = _read(Path(ground_truth))
    copied = {key: [dict(row) for row in ground_truth[key]] for key in ("images", "categories")}
    copied["annotations"] = [
        {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, **row, "id": k}
        for k, row in enumerate(ground_truth["annotations"], 1)
    ]
    truth = COCO(copied)
    strange = set(image_ids) - set(truth.imgs), set(category_ids) - set(truth.cats)
    if any(strange):
        raise ValueError(f"the ground truth lacks images {sorted(strange[0])[:3]}, categories {sorted(strange[1])[:3]}")
    metrics = {}
    for iou_type in iou_types:
        rows = coco_results(detections, iou_type, image_ids=image_ids, category_ids=category_ids)
        if iou_type == "segm":
            _check_sizes(rows, truth.imgs)
        # Before 1.8 the library cannot load no results.
        found = truth.loadRes(rows) if rows else COCO({**copied, "annotations": []})
        evaluation = COCOeval_faster(truth, found, iou_type)
        evaluation.params.imgIds, evaluation.params.catIds = sorted(image_ids), sorted(category_ids)
        evaluation.run()
        values = (float(value) for value in evaluation.stats[: len(_FIGURES)])
        metrics[iou_type] = {name: 100 * v if v >= 0 else float("nan") for name, v in zip(_FIGURES, values)}
    return metrics


def coco_results(
    detections: Detections, iou_type: str, *, image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections as COCO's results, a dict each, with `bbox` (x, y, width, height) or `segmentation`.

    Never with both: given a box, COCO's tools take its area for that of the mask, and count the object as another size.
    Raises ValueError where an index or label is out of range, or detections have no masks.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"IoU type {iou_type!r} is neither 'bbox' nor 'segm'")
    rows = []
    for image, found in detections:
        if not 0 <= image < len(image_ids) or (found.labels > len(category_ids)).any():
            raise ValueError(
                f"image {image}, labels up to {max(found.labels, default=0)}: "
                f"there are ids for {len(image_ids)} images and {len(category_ids)} categories"
            )
        if iou_type == "bbox":
            boxes = found.boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            shapes = [{"bbox": box} for box in boxes.tolist()]
        elif found.masks is not None or not len(found.labels):
            shapes = [{"segmentation": mask} for mask in found.masks or ()]
        else:
            raise ValueError(f"image {image} has detections without masks")
        image_id = int(image_ids[image])
        for label, score, shape in zip(found.labels.tolist(), found.scores.tolist(), shapes, strict=True):
            rows.append({"image_id": image_id, "category_id": int(category_ids[label - 1]), "score": score, **shape})
    return rows


def write_results(
    path: Path,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
) -> None:
    """Writes COCO's results JSON, a file a type, which appears under its name when it is whole."""
    rows = coco_results(detections, iou_type, image_ids=image_ids, category_ids=category_ids)
    write_atomically(path, json.dumps(rows))


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"The annotations {path} cannot be read ({error.strerror}); give COCO's JSON") from error
    except ValueError as error:
        raise UserError(f"The annotations {path} are no JSON ({error}); is the file cut off? Get it anew") from error
    missing = {"images", "annotations", "categories"} - set(read if isinstance(read, dict) else ())
    if missing:
        raise UserError(f"{path} has no {' and no '.join(sorted(missing))}; give an instances file of COCO's")
    return read


def _check_sizes(rows: list[dict[str, Any]], images: Mapping[int, Mapping[str, Any]]) -> None:
    """Masks of another size overlap nothing, without a word."""
    for row in rows:
        image, size = images[row["image_id"]], row["segmentation"]["size"]
        if list(size) != [image["height"], image["width"]]:
            raise ValueError(f"image {row['image_id']} is {image['height']} x {image['width']}, its masks {size}")


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
