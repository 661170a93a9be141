"""Top-1, top-5 and confusion of classifiers over a set, every image counted once on any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from simsiam.data.augment import Augment
from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.distributed.collectives import sum_over_ranks
from simsiam.distributed.runtime import Runtime
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision


@dataclass(frozen=True)
class Accuracy:
    """Percent correct in the first and in the first five answers, images counted, images that were unreadable.

    Attributes:
        confusion: int64 (C, C) on the CPU: images of class i that were called j.
    """

    top1: float
    top5: float
    images: int
    skipped: int
    confusion: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def mean_per_class(self) -> float:
        return mean_per_class(self.confusion)

    def __str__(self) -> str:
        left_out = f", {self.skipped} unreadable left out" if self.skipped else ""
        return f"top-1 {self.top1:.2f}%, top-5 {self.top5:.2f}% of {self.images:,} images{left_out}"


def mean_per_class(confusion: Tensor) -> float:
    """The mean over classes of the percent right of each, classes without an image left out, from counts (C, C)."""
    images = confusion.sum(1)
    return 100 * (confusion.diagonal() / images)[images > 0].double().mean().item()


class Tally:
    """Counts the answers of K classifiers, batch by batch, on this rank.

    Args:
        classes: C; the counts take 8 K C^2 bytes.

    Attributes:
        skipped: images without an answer because they could not be read.
    """

    def __init__(self, heads: int, classes: int, device: torch.device) -> None:
        self._confusion = torch.zeros(heads, classes * classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros(heads, dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._classes = classes

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts logits (K, N, C) with labels int64 (N,)."""
        ranked = logits.topk(min(5, self._classes), dim=2).indices
        pairs = labels * self._classes + ranked[:, :, 0]
        self._confusion.scatter_add_(1, pairs, torch.ones_like(pairs))
        self._top5 += (ranked == labels.view(1, -1, 1)).sum((1, 2))

    def over_ranks(self) -> list[Accuracy]:
        """Each classifier's accuracy over the images of all ranks; the same on each, and every rank must call it."""
        confusion = sum_over_ranks(self._confusion).view(-1, self._classes, self._classes).cpu()
        top5, skipped = sum_over_ranks(self._top5).tolist(), int(sum_over_ranks(self.skipped))
        found = []
        for table, in_five in zip(confusion, top5, strict=True):
            images, right = int(table.sum()), int(table.diagonal().sum())
            percent = 100 / max(images, 1)
            found.append(Accuracy(percent * right, percent * in_five, images, skipped, table))
        return found


@torch.no_grad()
def evaluate_classifiers(
    logits: Callable[[Tensor], Tensor],
    images: ImageSet,
    views: Views,
    runtime: Runtime,
    precision: Precision,
    *,
    heads: int = 1,
    batch: int = 256,
    centres: CentreBatches = centre_batches,
    show_progress: bool = False,
) -> list[Accuracy]:
    """Accuracy of K = `heads` classifiers on centre crops, the same on every rank.

    `logits` turns images (N, 3, S, S) into (K, N, C), where C is the number of `images.classes`.
    Rank r of W takes images r, r + W, ...: no sampler pads, so no image counts twice. Every rank must call it.
    """
    mine = np.flatnonzero(images.labels >= 0)[runtime.rank :: runtime.world_size]
    augment = Augment(views, 0).to(runtime.device)
    tally = Tally(heads, len(images.classes), runtime.device)
    disable = None if show_progress and runtime.is_main else True
    with tqdm(total=len(mine), desc="validating", unit=" images", leave=False, disable=disable) as bar:
        for part in centres(images, mine, views, batch):
            if len(part.labels):
                with precision.autocast():
                    answers = logits(augment.centred(part.images)).float()
                tally.add(answers, part.labels.to(runtime.device, non_blocking=True))
            tally.skipped += len(part.skipped)
            bar.update(len(part.labels) + len(part.skipped))
    return tally.over_ranks()
