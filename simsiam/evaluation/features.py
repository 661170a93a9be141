"""An encoder over a labelled set, every image once, shared out over the ranks."""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.data.augment import Augment
from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.distributed.collectives import world_size
from simsiam.distributed.runtime import Runtime
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision


class Features(NamedTuple):
    """This rank's part: features (n, D), labels and sample ids int64 (n,) on the CPU, count of unreadable images."""

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
    precision: Precision | None = None,
    dtype: torch.dtype = torch.float32,
    unit: bool = False,
    out: Tensor | None = None,
    describe: str = "",
) -> Features:
    """Pooled features of the centre crops of every labelled image; rank r of W takes images r, r + W, r + 2 W, ...

    The encoder runs in evaluation mode and is left in the mode it was in.

    Args:
        batch: images of a forward pass on each rank.
        precision: of the forward pass; float32 by default.
        dtype: that the features are kept in, on the runtime's device.
        unit: divide each feature by its length, in float32, before it is kept.
        out: (images of this rank, D), to keep them in instead, in its type and on its device.
        describe: name of the progress bar; empty shows none.
    """
    labelled = np.flatnonzero(images.labels >= 0)
    mine, full = labelled[runtime.rank :: world_size()], min(batch, len(labelled))
    augment = Augment(views, 0).to(runtime.device)
    was_training = encoder.training
    encoder.eval()
    kept, count, skipped = out, 0, 0
    labels, samples = np.empty((2, len(mine)), np.int64)
    with tqdm(total=len(mine), desc=describe, unit=" images", disable=None if describe else True, leave=False) as bar:
        for part in centres(images, mine, views, batch):
            size = len(part.labels)
            if size:
                crops = part.images
                if size < full:
                    # A lone image goes through another kernel and gets other last bits, and how short the last batch is
                    # depends on the number of ranks.
                    crops = F.pad(crops, (0, 0, 0, 0, 0, 0, 0, full - size))
                with nullcontext() if precision is None else precision.autocast():
                    found = encoder(augment.centred(crops))[:size].float()
                if kept is None:
                    # All at once, for a list and its concatenation would take the memory twice.
                    kept = torch.empty(len(mine), found.shape[1], dtype=dtype, device=runtime.device)
                rows = slice(count, count + size)
                kept[rows] = F.normalize(found, dim=1) if unit else found
                labels[rows], samples[rows] = part.labels.numpy(), part.samples.numpy()
                count += size
            skipped += len(part.skipped)
            bar.update(size + len(part.skipped))
    encoder.train(was_training)
    if kept is None:
        kept = torch.empty(0, getattr(encoder, "feature_dim", 0), dtype=dtype, device=runtime.device)
    return Features(kept[:count], torch.from_numpy(labels[:count]), torch.from_numpy(samples[:count]), skipped)
