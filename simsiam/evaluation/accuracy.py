"""Top-1 and top-5 of a classifier over a set, every image counted once on any number of ranks."""

from collections.abc import Callable
from typing import NamedTuple

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


class Accuracy(NamedTuple):
    """Percent correct in the first and in the first five answers, images counted, images that were unreadable."""

    top1: float
    top5: float
    images: int
    skipped: int

    def __str__(self) -> str:
        left_out = f", {self.skipped} unreadable left out" if self.skipped else ""
        return f"top-1 {self.top1:.2f}%, top-5 {self.top5:.2f}% of {self.images:,} images{left_out}"


@torch.no_grad()
def evaluate_classifier(
    logits: Callable[[Tensor], Tensor],
    images: ImageSet,
    views: Views,
    runtime: Runtime,
    precision: Precision,
    *,
    batch: int = 256,
    centres: CentreBatches = centre_batches,
    show_progress: bool = False,
) -> Accuracy:
    """Accuracy of `logits` (images (N, 3, S, S) -> (N, C)) on centre crops; the same numbers on every rank.

    Rank r of W takes images r, r + W, ...: no sampler pads, so no image counts twice. Every rank must call it.
    """
    mine = np.flatnonzero(images.labels >= 0)[runtime.rank :: runtime.world_size]
    augment = Augment(views, 0).to(runtime.device)
    counts = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    disable = None if show_progress and runtime.is_main else True
    with tqdm(total=len(mine), desc="validating", unit=" images", leave=False, disable=disable) as bar:
        for part in centres(images, mine, views, batch):
            if len(part.labels):
                pixels = part.images.to(runtime.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
                with precision.autocast():
                    answers = logits(augment.normalise(pixels)).float()
                ranked = answers.topk(min(5, answers.shape[1]), dim=1).indices
                hits = ranked == part.labels.to(runtime.device).unsqueeze(1)
                counts[0] += hits[:, 0].sum()
                counts[1] += hits.sum()
                counts[2] += len(hits)
            counts[3] += len(part.skipped)
            bar.update(len(part.labels) + len(part.skipped))
    top1, top5, total, skipped = sum_over_ranks(counts).tolist()
    return Accuracy(100 * top1 / max(total, 1), 100 * top5 / max(total, 1), int(total), int(skipped))
