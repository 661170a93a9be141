"""An encoder over a labelled set, every image once, shared out over the ranks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.data.augment import Augment
from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.distributed.collectives import world_size
from simsiam.distributed.runtime import Runtime
from simsiam.settings.tree import Views


class Features(NamedTuple):
    """This rank's part: features float32 (n, D), labels and sample ids int64 (n,), count of unreadable images."""

    features: Tensor
    labels: Tensor
    samples: Tensor
    skipped: int


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    views: Views,
    runtime: Runtime,
    *,
    batch: int = 256,
    centres: CentreBatches = centre_batches,
    describe: str = "",
) -> Features:
    """Pooled features of the centre crops of every labelled image; rank r of W takes images r, r + W, r + 2 W, ...

    The encoder runs in evaluation mode and float32, and is left in the mode it was in. `describe` names the progress
    bar; empty shows none.
    """
    mine = np.flatnonzero(images.labels >= 0)[runtime.rank :: world_size()]
    augment = Augment(views, 0).to(runtime.device)
    was_training = encoder.training
    encoder.eval()
    features, labels, samples, skipped = [], [], [], 0
    with tqdm(total=len(mine), desc=describe, unit=" images", disable=None if describe else True, leave=False) as bar:
        for part in centres(images, mine, views, batch):
            pixels = part.images.to(runtime.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
            features.append(encoder(augment.normalise(pixels)).float())
            labels.append(part.labels)
            samples.append(part.samples)
            skipped += len(part.skipped)
            bar.update(len(part.labels) + len(part.skipped))
    encoder.train(was_training)
    width = getattr(encoder, "feature_dim", 0)
    empty = torch.empty(0, width, device=runtime.device)
    return Features(
        torch.cat(features) if features else empty,
        torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64),
        torch.cat(samples) if samples else torch.empty(0, dtype=torch.int64),
        skipped,
    )
