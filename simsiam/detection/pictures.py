"""Pictures of what a detector found beside what is true."""

import colorsys
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from simsiam.data.image_set import BadImage
from simsiam.detection.annotations import DetectionSet, clipped, has_area
from simsiam.detection.detections import Detections, ImageDetections

Colour = tuple[int, int, int]

_LEAST, _MOST = 400, 780  # pixels of an image's longer side; between them it keeps its size
_PANEL = 280, 60  # width and height in pixels that hold a title and a label, however small the image
_TEXT, _TITLE, _GAP = 14, 24, 8  # pixels
_IGNORED: Colour = (160, 160, 160)
_LUMA = 0.3, 0.59, 0.11  # of red, green and blue
_IN_GRID, _GRID_BYTES = 4, 2 << 20  # the report's page takes no larger file


def picture(
    image: Tensor,
    found: ImageDetections,
    target: dict[str, Tensor],
    true_masks: Tensor | None,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
) -> Tensor:
    """What was found with a score of `threshold` or more, and right of it what is true, uint8 (3, H', W').

    A class has one colour everywhere; gray is what evaluators ignore. Small images are enlarged and large ones reduced,
    so that text can be read and W' is below 1600.

    Args:
        image: uint8 (3, H, W).
        target: of `DetectionSet.target`.
        true_masks: uint8 (n, H, W), of `DetectionSet.masks`.
        classes: names, label 1 first.
    """
    order = np.argsort(found.scores, kind="stable")  # the surest is drawn last, on top
    order = order[found.scores[order] >= threshold]
    labels = found.labels[order].tolist()
    left = _panel(
        image,
        f"found, score {threshold:g} or more: {len(order)}",
        found.boxes[order],
        [f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, found.scores[order])],
        [_colour(label) for label in labels],
        (coco_mask.decode(found.masks[k]) for k in order) if found.masks else (),
    )
    ignored = (target["difficult"] | target["iscrowd"]).numpy()
    order = np.argsort(~ignored, kind="stable")
    labels = target["labels"][order].tolist()
    right = _panel(
        image,
        f"true: {len(order)}" + (f", {ignored.sum()} ignored (gray)" if ignored.any() else ""),
        target["boxes"][order].numpy(),
        [classes[label - 1] for label in labels],
        [_IGNORED if gray else _colour(label) for label, gray in zip(labels, ignored[order])],
        () if true_masks is None else true_masks[order].numpy(),
    )
    return torch.cat([pad(left, (0, _GAP), value=255), right], 2)


def write_pictures(folder: Path, images: DetectionSet, detections: Detections, count: int) -> Tensor | None:
    """FOLDER/detections/NAME.png of the first `count` images that were looked at and can be read.

    NAME is that of the image file, with what some file system may refuse replaced.

    Returns:
        The first of them below each other, uint8 (3, H, W), as in FOLDER/detections.png; None where there is none.
    """
    names: set[str] = set()
    first: list[Tensor] = []
    for image, found in detections:
        if len(names) >= count:
            break
        try:
            pixels = images.read(image)
        except BadImage:
            continue
        masks = images.masks(image) if images.has_masks else None
        drawn = picture(pixels, found, images.target(image), masks, images.classes)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", Path(images.name(image)).stem)[:100]
        while name in names:
            name += "_"
        names.add(name)
        (folder / "detections").mkdir(parents=True, exist_ok=True)
        (folder / "detections" / f"{name}.png").write_bytes(_png(drawn))
        if len(first) < _IN_GRID:
            first.append(drawn)
    return _write_grid(folder / "detections.png", first) if first else None


def _panel(
    image: Tensor,
    title: str,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[Colour],
    masks: Iterable[np.ndarray],
) -> Tensor:
    """The image below a title, with boxes float32 (n, 4) in its pixels, and masks, a mask each or none at all."""
    height, width = image.shape[1:]
    scale = min(max(height, width, _LEAST), _MOST) / max(height, width)
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    drawn = resize(image, [rows, columns], antialias=True)
    for mask, colour in zip(masks, colours):
        small = resize(torch.from_numpy(mask)[None], [rows, columns], InterpolationMode.NEAREST_EXACT)
        drawn = draw_segmentation_masks(drawn, small.bool(), 0.5, colour)  # with 0.5 all else stays as it is
    corners = clipped(boxes, height, width)
    shown = np.flatnonzero(has_area(corners))
    corners = corners[shown] * np.tile([columns / width, rows / height], 2)
    low = np.floor(corners[:, :2]).astype(int)
    last = np.maximum(low, np.ceil(corners[:, 2:]).astype(int) - 1)  # pixels of the box
    if len(shown):  # the library warns of none
        pixels = torch.from_numpy(np.hstack([low, last]))
        drawn = draw_bounding_boxes(drawn, pixels, colors=[colours[k] for k in shown], width=2)
    panel = Image.new("RGB", (max(columns, _PANEL[0]), _TITLE + max(rows, _PANEL[1])), "white")
    panel.paste(to_pil_image(drawn), (0, _TITLE))
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(_TEXT)
    pen.text((3, 3), title, "black", font)
    for (x, y), k in zip(low.tolist(), shown):
        wide, high = (round(side) + 4 for side in pen.textbbox((0, 0), texts[k], font)[2:])
        x, y = max(0, min(x, panel.width - wide)), max(_TITLE, y + _TITLE - high)  # on the box, or else in it
        pen.rectangle((x, y, x + wide - 1, y + high - 1), colours[k])
        pen.text((x + 2, y + 1), texts[k], "black" if np.dot(colours[k], _LUMA) > 120 else "white", font)
    return pil_to_tensor(panel)


def _colour(label: int) -> Colour:
    """Hues a golden section apart, full, pale and dark in turn."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, *((1.0, 0.95), (0.5, 1.0), (0.9, 0.65))[label % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _write_grid(file: Path, pictures: Sequence[Tensor]) -> Tensor:
    """Pictures below each other, made smaller until their file is small enough."""
    width = max(drawn.shape[2] for drawn in pictures)
    whole = grid = torch.cat([pad(drawn, (0, width - drawn.shape[2], 0, _GAP), value=255) for drawn in pictures], 1)
    scale = 1.0
    while len(data := _png(grid)) > _GRID_BYTES:
        scale *= 0.95 * math.sqrt(_GRID_BYTES / len(data))
        grid = resize(whole, [round(side * scale) for side in whole.shape[1:]], antialias=True)
    file.write_bytes(data)
    return grid


def _png(drawn: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil_image(drawn).save(buffer, "PNG")
    return buffer.getvalue()
