"""Images as the protocols test on them: shorter side resized, centre cropped, each image once."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from simsiam.data.image_set import BadImage, ImageSet
from simsiam.data.loader_workers import in_workers
from simsiam.data.sources.arrays import ArrayImages
from simsiam.settings.tree import Views


class Centred(NamedTuple):
    """A batch of centre crops: uint8 (N, S, S, 3), labels int64 (N,), samples int64 (N,), and what was left out."""

    images: Tensor
    labels: Tensor
    samples: Tensor
    skipped: tuple[tuple[int, str], ...]


class CentreBatches(Protocol):
    """How the protocols get their images; `centre_batches` is one."""

    def __call__(self, images: ImageSet, samples: np.ndarray, views: Views, batch: int) -> Iterator[Centred]: ...


def centre_batches(
    images: ImageSet, samples: np.ndarray, views: Views, batch: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Centred]:
    """Centre crops of `samples`, in order, at most `batch` at a time; images that cannot be read are left out."""
    chunks = [samples[i : i + batch] for i in range(0, len(samples), batch)]
    in_memory = isinstance(images, ArrayImages) and min(images.images.shape[1:3]) == views.resize
    crops = _CentreOfArray(images, views) if in_memory else _Centre(images, views)
    return iter(in_workers(crops, chunks, min(workers, len(chunks)), pin_memory=pin_memory))


class _Centre(Dataset):
    def __init__(self, images: ImageSet, views: Views) -> None:
        self.images, self.views = images, views

    def __getitem__(self, samples: np.ndarray) -> Centred:
        crops, kept, skipped = [], [], []
        for sample in samples.tolist():
            try:
                crops.append(centre_crop(self.images.read(sample), self.views.resize, self.views.size))
                kept.append(sample)
            except BadImage as error:
                skipped.append((sample, str(error)))
        side = self.views.size
        stacked = torch.stack(crops) if crops else torch.empty(0, side, side, 3, dtype=torch.uint8)
        labels = torch.from_numpy(self.images.labels[kept])
        return Centred(stacked, labels, torch.tensor(kept, dtype=torch.int64), tuple(skipped))


class _CentreOfArray(Dataset):
    """The same of images that have their size already: a batch at once, some fifty times as fast."""

    def __init__(self, images: ArrayImages, views: Views) -> None:
        self.images, self.side = images, views.size
        _, (self.top, self.left) = centre_geometry(*images.images.shape[1:3], views.resize, views.size)

    def __getitem__(self, samples: np.ndarray) -> Centred:
        bad = np.isin(samples, list(self.images.replaced))
        kept = samples[~bad].astype(np.int64)
        rows, columns = slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)
        crops, labels = self.images.images[kept][:, rows, columns], self.images.labels[kept]
        skipped = tuple((sample, self.images.replaced[sample]) for sample in samples[bad].tolist())
        return Centred(*map(torch.from_numpy, (crops, labels, kept)), skipped)


def centre_crop(image: Tensor, resize: int, side: int) -> Tensor:
    """uint8 (3, H, W) -> uint8 (side, side, 3): shorter side to `resize`, centre crop, as torchvision on PIL images."""
    (height, width), (top, left) = centre_geometry(*image.shape[1:], resize, side)
    if (height, width) != image.shape[1:]:
        size = (height, width)
        image = F.interpolate(image.unsqueeze(0), size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return image[:, top : top + side, left : left + side].permute(1, 2, 0)


def centre_geometry(height: int, width: int, resize: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a resized image whose shorter side is `resize`, and (top, left) of its centre crop."""
    if min(height, width) != resize:
        portrait = height > width
        height, width = (int(resize * height / width), resize) if portrait else (resize, int(resize * width / height))
    return (height, width), (round((height - side) / 2), round((width - side) / 2))
