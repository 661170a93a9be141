"""Features of centre crops, computed once into files: a linear classifier then trains in minutes.

FOLDER/00-of-02.npy         float16 (n, D), the features that rank 0 of 2 computed, mapped into memory when read
FOLDER/00-of-02.index.npz   their labels and sample ids, and what they are of; written when the features are whole
FOLDER/about.json           what all are of, and how many files; written when all are whole
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.atomic import replacing, write_atomically
from simsiam.data.crops import Crops
from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.data.plan import Plan, micro_batch
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.evaluation.accuracy import Accuracy, Tally
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.ledger import list_hash
from simsiam.export.write import encoder_hash
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision

_MOST_RANKS = 1 << 20


class CachedFeatures:
    """The features of a set's readable images, in the order of its sample ids; row n stands for the n-th of them.

    Attributes:
        labels: int64 (n,).
        classes: names in the order of their numbers.
        skipped: labelled images that could not be read.
    """

    def __init__(self, folder: Path, ranks: int, classes: tuple[str, ...]) -> None:
        names = [_name(rank, ranks) for rank in range(ranks)]
        try:
            self._files = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
            indexes = [_read_index(folder / f"{name}.index.npz") for name in names]
            for file, index in zip(self._files, indexes):
                # Images that could not be read leave rows at its end.
                if file.ndim != 2 or not len(file) >= len(index["samples"]) == len(index["labels"]):
                    raise ValueError("features and labels do not agree")
        except Exception as error:  # zipfile and numpy raise nearly anything on damaged data
            raise UserError(f"The features in {folder} are damaged ({error}); remove the folder") from None
        samples = np.concatenate([index["samples"] for index in indexes])
        order = np.argsort(samples)
        self.labels = np.concatenate([index["labels"] for index in indexes])[order]
        self._file = np.repeat(np.arange(ranks), [len(index["samples"]) for index in indexes])[order]
        self._row = np.concatenate([np.arange(len(index["samples"])) for index in indexes])[order]
        self.skipped = sum(int(index["skipped"]) for index in indexes)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: np.ndarray) -> Tensor:
        """float16 (len(numbers), D)."""
        found = np.empty((len(numbers), self._files[0].shape[1]), np.float16)
        for number, file in enumerate(self._files):
            here = self._file[numbers] == number
            found[here] = file[self._row[numbers[here]]]
        return torch.from_numpy(found)


def cache_features(
    encoder: nn.Module,
    images: ImageSet,
    views: Views,
    runtime: Runtime,
    folder: Path,
    precision: Precision,
    *,
    centres: CentreBatches = centre_batches,
    describe: str = "",
) -> CachedFeatures:
    """The features in `folder`, computed by all ranks where they are not those of this encoder, set and crop.

    Every rank must call it, and all must see the same folder. What was computed before an interruption is kept, a file
    a rank.
    """
    crop = {name: getattr(views, name) for name in ("resize", "size", "mean", "std")}
    subject = {"encoder_sha256": encoder_hash(encoder), "data_sha256": list_hash(images), "precision": precision.name}
    about = json.dumps({**subject, **crop})
    held = runtime.on_main(lambda: _held(folder, about))
    if held is None:
        name = _name(runtime.rank, runtime.world_size)
        if not _is_whole(folder / f"{name}.index.npz", about):
            (folder / "about.json").unlink(missing_ok=True)
            mine = -(-max(0, int((images.labels >= 0).sum()) - runtime.rank) // runtime.world_size)
            file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (mine, encoder.feature_dim))
            found = extract_features(
                encoder, images, views, runtime, centres=centres, precision=precision, out=torch.from_numpy(file),
                describe=describe if runtime.is_main else "",
            )  # fmt: skip
            file.flush()
            _write_index(folder / f"{name}.index.npz", about, found.labels, found.samples, found.skipped)
        runtime.barrier()
        held = runtime.world_size
        whole = json.dumps({"ranks": held, "of": json.loads(about)})
        runtime.on_main(lambda: write_atomically(folder / "about.json", whole + "\n"))
    return CachedFeatures(folder, held, images.classes)


class FeatureLoader:
    """A `Loader` of features: `images` of its micro-batches are float16 (N, D)."""

    def __init__(self, features: CachedFeatures, plan: Plan, accumulate: int) -> None:
        self._features, self._plan, self._accumulate = features, plan, accumulate

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """This rank's micro-batches of each step."""
        for step in range(start, stop):
            tasks = range(step * self._accumulate, (step + 1) * self._accumulate)
            yield [self._crops(micro_batch(self._plan, task, self._accumulate), step) for task in tasks]

    def _crops(self, numbers: np.ndarray, step: int) -> Crops:
        labels = torch.from_numpy(self._features.labels[numbers])
        return Crops(self._features.rows(numbers), numbers, labels, self._plan.epoch(step))


@torch.no_grad()
def evaluate_features(
    logits: Callable[[Tensor], Tensor],
    features: CachedFeatures,
    runtime: Runtime,
    *,
    heads: int = 1,
    batch: int = 4096,
    show_progress: bool = False,
) -> list[Accuracy]:
    """As `evaluate_classifiers`, from features (N, D); every rank must call it."""
    mine = np.arange(len(features))[runtime.rank :: runtime.world_size]
    tally = Tally(heads, len(features.classes), runtime.device)
    disable = None if show_progress and runtime.is_main else True
    for start in tqdm(range(0, len(mine), batch), desc="validating", unit=" batches", leave=False, disable=disable):
        part = mine[start : start + batch]
        answers = logits(features.rows(part).to(runtime.device))
        tally.add(answers, torch.from_numpy(features.labels[part]).to(runtime.device))
    tally.skipped += features.skipped if runtime.is_main else 0
    return tally.over_ranks()


def _name(rank: int, ranks: int) -> str:
    return f"{rank:02d}-of-{ranks:02d}"


def _held(folder: Path, about: str) -> int | None:
    """How many files the folder holds of the subject `about`; None where they are not whole, or of another."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "about.json").exists():
        return None
    try:
        held: dict[str, Any] = json.loads((folder / "about.json").read_text())
        same = held["of"] == json.loads(about) and type(held["ranks"]) is int and 0 < held["ranks"] <= _MOST_RANKS
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return held["ranks"] if same else None


def _is_whole(index: Path, about: str) -> bool:
    try:
        return str(_read_index(index)["about"]) == about
    except Exception:  # none, or damaged, which raises nearly anything: it is made anew
        return False


def _read_index(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        # As written they are not compressed, and cannot unfold to more than the file.
        if sum(member.file_size for member in stored.zip.infolist()) > path.stat().st_size:
            raise ValueError(f"{path.name} is compressed")
        return dict(stored)


def _write_index(path: Path, about: str, labels: Tensor, samples: Tensor, skipped: int) -> None:
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, about=about, labels=labels.numpy(), samples=samples.numpy(), skipped=skipped)
