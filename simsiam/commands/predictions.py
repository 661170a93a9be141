"""Images of any folder in, rows of a CSV file out: what `simsiam predict` does once it has its network."""

import contextlib
import csv
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.atomic import replacing
from simsiam.data.augment import Augment
from simsiam.data.index import Index, Strings
from simsiam.data.labelled import centre_batches
from simsiam.data.sources.folder import EXTENSIONS, FolderImages
from simsiam.errors import UserError
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision

_SECONDS_WITHOUT_BAR = 3.0


class Answers(NamedTuple):
    """Of some images in order: samples int64 (n,), probabilities float32 (n, C) on the CPU, why others have none."""

    samples: Tensor
    probabilities: Tensor
    bad: dict[int, str]


class Told(NamedTuple):
    """The likeliest class of each image that could be read, and `name: reason` of each that could not."""

    first: dict[int, int]
    bad: list[str]


def open_images(given: Path) -> FolderImages:
    """One image, or all below a folder in the order of their names, at whatever depth; none has a label.

    Raises UserError where there is none.
    """
    if given.is_dir():
        root, names = given, sorted(_names(str(given)))
        if not names:
            raise UserError(f"No image in {given} or below it; give a folder that holds some ({' '.join(EXTENSIONS)})")
    elif given.exists():
        root, names = given.parent, [given.name]
    else:
        raise UserError(f"There is no image or folder {given}; give the path of one that is there")
    index = Index(names=Strings.of(names), labels=np.full(len(names), -1, np.int64), classes=())
    return FolderImages(root, index=index)


def _names(root: str, inner: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths from the root, with `/`, of the images in a folder and below it; as in training, none with a dot first.

    `scan` would refuse loose images beside folders, and empty folders: in training either is a mistake.
    """
    path = os.path.join(root, inner)
    real = os.path.realpath(path)
    if real in above:  # a link to a folder above it leads round and round
        return
    try:
        with os.scandir(path) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path} cannot be listed ({error.strerror}); make it readable or move it away") from error
    for name, is_folder in found:
        if is_folder:
            yield from _names(root, f"{inner}{name}/", above | {real})
        elif name.lower().endswith(EXTENSIONS):
            yield inner + name


def answers(
    encoder: nn.Module,
    head: nn.Module,
    images: FolderImages,
    views: Views,
    precision: Precision,
    *,
    batch: int,
    workers: int,
) -> Iterator[Answers]:
    """What `encoder` and `head`, on the device of `precision`, make of the centre crops; the head in float32."""
    augment = Augment(views, 0).to(precision.device)
    for part in centre_batches(images, np.arange(len(images)), views, batch, workers):
        if not len(part.samples):
            yield Answers(part.samples, torch.empty(0, 0), dict(part.skipped))
            continue
        with torch.inference_mode():
            with precision.autocast():
                features = encoder(augment.centred(part.images))
            probabilities = head(features.float()).softmax(dim=1).cpu()
        yield Answers(part.samples, probabilities, dict(part.skipped))


def write(
    parts: Iterable[Answers], classes: tuple[str, ...], images: FolderImages, out: TextIO, *, top: int, every: bool
) -> Told:
    """Writes a row an image, in order, as the answers come.

    Args:
        top: likeliest classes in a row, each with its probability.
        every: whether a row has the probabilities of all classes besides.
    """
    told, table = Told({}, []), csv.writer(out, lineterminator="\n")
    pairs = [("label", "probability")] if top == 1 else [(f"label_{k}", f"probability_{k}") for k in range(1, top + 1)]
    columns = ["file", *(name for pair in pairs for name in pair), *(classes if every else ())]
    table.writerow(columns)
    with tqdm(
        total=len(images), desc="predicting", unit=" images", disable=None, delay=_SECONDS_WITHOUT_BAR, leave=False
    ) as bar:
        for part in parts:
            rows = {sample: [""] * (len(columns) - 1) for sample in part.bad}
            for sample, probabilities in zip(part.samples.tolist(), part.probabilities):
                highest = probabilities.topk(top)
                labels = highest.indices.tolist()
                ranked = zip((classes[label] for label in labels), map(_digits, highest.values.tolist()))
                others = map(_digits, probabilities.tolist() if every else ())
                rows[sample] = [*(cell for pair in ranked for cell in pair), *others]
                told.first[sample] = labels[0]
            table.writerows([images.name(sample), *rows[sample]] for sample in sorted(rows))
            told.bad.extend(f"{images.name(sample)}: {why}" for sample, why in part.bad.items())
            bar.update(len(rows))
    return told


def _digits(probability: float) -> str:
    return f"{probability:.6f}"


@contextlib.contextmanager
def writing(path: str) -> Iterator[TextIO]:
    """The file to write, which appears under its name when it is whole; `-` is stdout.

    Raises UserError where it cannot be written, as early as possible.
    """
    if path == "-":
        with _stdout() as out:
            yield out
        return
    final = Path(path)
    if final.exists() and not final.is_file():
        raise UserError(f"--out {final} is a folder or device; give a file, or - for stdout")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        # A file's name need not be UTF-8. It is closed, and so written, before its draft is moved.
        with (
            replacing(final) as draft,
            draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            yield file
    except OSError as error:
        raise UserError(
            f"The predictions {final} cannot be written ({error.strerror or error}); give --out another file"
        ) from error


@contextlib.contextmanager
def _stdout() -> Iterator[TextIO]:
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
