"""What a run's encoder holds alike, kept in the run folder: neighbours.jpg and gallery.json."""

import json
import math
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from simsiam.atomic import write_atomically
from simsiam.data.datasets import has_split, open_dataset
from simsiam.data.storage import is_url
from simsiam.errors import UserError
from simsiam.evaluation.alike import NEIGHBOURS, Alike, alike, some_images
from simsiam.export.read import ReadEncoder
from simsiam.export.write import encoder_hash
from simsiam.run.record import Record
from simsiam.settings.tree import Views

FACTS, SHEET = "gallery.json", "neighbours.jpg"

_QUERIES = 10
_TILE = 64  # pixels of an image in the sheet, at most


@dataclass(frozen=True)
class Gallery:
    """What gallery.json says.

    Attributes:
        encoder_sha256, step: of the encoder; the step is empty where its file does not say it.
        data, split: where the images are from.
        chosen_of: classes of the whole set.
        classes: names of those that were chosen; empty where the set has no labels.
        labels: of each image, a place in `classes`; -1 without a label.
        rows: of each row of the sheet its images: the query, then its neighbours, the nearest first.
        same: share of all images' neighbours that are of the image's class; None without labels.
        maps: name -> place of each image, in 0..1.
        kept: share of the variance along the two axes of the map PCA.
    """

    encoder_sha256: str
    step: str
    data: str
    split: str
    chosen_of: int
    classes: list[str]
    labels: list[int]
    rows: list[list[int]]
    same: float | None
    maps: dict[str, list[list[float]]]
    kept: float


def without_encoder(run: Record) -> str:
    """Why a run has no encoder of its own to look at; empty where it should have one."""
    if run.kind == "detection":
        return "No neighbours and map: a detector has no features of whole images; see the run of its encoder"
    if run.kind == "classification" and not (run.path / "encoder.safetensors").is_file():
        of = run.config.get("pretrained")
        return f"No neighbours and map: the encoder is not this run's own, but that of {of}" if of else ""
    return ""


def make_gallery(run: Record, read: ReadEncoder, views: Views, device: torch.device) -> bool:
    """Writes the two files where they are not already there for this encoder and these data; whether it did.

    Raises UserError, with the reason, where the data is not on this machine or holds too little.
    """
    data = run.config.get("data")
    if not isinstance(data, str) or not data:
        raise UserError("config.yaml does not say what it was trained on")
    if is_url(data):
        raise UserError(f"its data is elsewhere ({data})")
    sha256, before = encoder_hash(read.encoder), read_gallery(run.path)
    if before is not None and (before.encoder_sha256, before.data) == (sha256, data) and (run.path / SHEET).is_file():
        return False
    split = "val" if has_split(data, "val") else "pretrain"
    images = open_dataset(data, split)
    found = alike(read.encoder, images, some_images(images), views, device)
    gallery = _described(found, images.classes)
    gallery |= {"encoder_sha256": sha256, "step": read.info.get("step", ""), "data": data, "split": split}
    try:
        write_atomically(run.path / SHEET, _sheet(found.crops, torch.tensor(gallery["rows"])))
        write_atomically(run.path / FACTS, json.dumps(asdict(Gallery(**gallery))) + "\n")
    except OSError as error:
        raise UserError(f"{run.path} cannot be written ({error.strerror})") from None
    return True


def read_gallery(folder: Path) -> Gallery | None:
    """The gallery of a run folder; None where there is none, or none that can be shown."""
    try:
        gallery = Gallery(**json.loads((folder / FACTS).read_bytes()))
        _check(gallery)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return gallery


def _check(gallery: Gallery) -> None:
    """Raises ValueError, TypeError or KeyError for what the page could not draw: folders come from elsewhere too."""
    count = len(gallery.labels)
    texts = (gallery.encoder_sha256, gallery.step, gallery.data, gallery.split, *gallery.classes, *gallery.maps)
    wholes = [gallery.chosen_of, *gallery.labels, *(place for row in gallery.rows for place in row)]
    numbers = [value for places in gallery.maps.values() for pair in places for value in pair]
    sound = (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in wholes)
        and all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in numbers)
        and all(-1 <= label < len(gallery.classes) for label in gallery.labels)
        and all(0 <= place < count for row in gallery.rows for place in row)
        and len({len(row) for row in gallery.rows}) == 1
        and 1 < len(gallery.rows[0]) <= NEIGHBOURS + 1
        and all(len(places) == count and all(len(pair) == 2 for pair in places) for places in gallery.maps.values())
        and math.isfinite(gallery.kept)
        and (gallery.same is None or math.isfinite(gallery.same))
    )
    if not sound:
        raise ValueError("not a gallery")


def _described(found: Alike, names: tuple[str, ...]) -> dict[str, Any]:
    present = sorted({label for label in found.labels.tolist() if label >= 0})
    labels = torch.tensor([present.index(label) if label >= 0 else -1 for label in found.labels.tolist()])
    same = (labels[found.neighbours] == labels.unsqueeze(1)).float().mean().item() if present else None
    # A query of each class, the middle one: the first of a folder is often an odd one.
    of_class = [torch.nonzero(labels == place).flatten() for place in range(len(present))]
    queries = [int(places[len(places) // 2]) for places in of_class] or torch.linspace(
        0, len(labels) - 1, min(_QUERIES, len(labels))
    ).long().tolist()
    return {
        "chosen_of": len(names),
        "classes": [names[label] for label in present],
        "labels": labels.tolist(),
        "rows": [[query, *found.neighbours[query].tolist()] for query in queries],
        "same": same,
        "maps": {name: places.round(4).clip(0, 1).tolist() for name, places in found.maps.items()},
        "kept": found.kept,
    }


def _sheet(crops: Tensor, rows: Tensor) -> bytes:
    """A JPEG with the images of each row beside each other: crops uint8 (N, S, S, 3), rows int64 (Q, 1 + K)."""
    side = min(_TILE, crops.shape[1])
    tiles = crops[rows.flatten()].permute(0, 3, 1, 2).float()
    tiles = F.interpolate(tiles, size=(side, side), mode="bilinear", antialias=True).clamp(0, 255).round().byte()
    sheet = tiles.unflatten(0, rows.shape).permute(0, 3, 1, 4, 2).reshape(rows.shape[0] * side, rows.shape[1] * side, 3)
    jpeg = BytesIO()
    Image.fromarray(sheet.numpy()).save(jpeg, "JPEG", quality=90, subsampling=0)
    return jpeg.getvalue()
