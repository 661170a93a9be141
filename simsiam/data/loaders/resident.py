"""A small set held on the training device: crops are two batched matrix products, no worker, no copy from the host."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from simsiam.data.crops import Crops
from simsiam.data.plan import Plan
from simsiam.data.resident import ResidentImages
from simsiam.data.to_device import to_device
from simsiam.data.views import boxes_of_views
from simsiam.settings.tree import Run
from simsiam.settings.view_recipes import view_recipes


class ResidentLoader:
    """Crops from images that stay on the device as uint8 (N, 3, H, W)."""

    def __init__(self, images: ResidentImages, plan: Plan, settings: Run, num_views: int, device: torch.device) -> None:
        self._pixels = torch.from_numpy(images.images).permute(0, 3, 1, 2).contiguous().to(device)
        self._labels = torch.from_numpy(images.labels)
        self._bad = images.replaced
        self._plan, self._settings, self._num_views = plan, settings, num_views

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """Micro-batches of each step, made when asked for."""
        for step in range(start, stop):
            samples = self._plan.rank_batch(step)
            yield [self._crops(part, self._plan.epoch(step)) for part in np.split(samples, self._settings.accumulate)]

    def _crops(self, samples: np.ndarray, epoch: int) -> Crops:
        recipes = view_recipes(self._settings, epoch, self._num_views)
        ids = to_device(samples, self._pixels.device)
        pixels = self._pixels.index_select(0, ids).float()
        sizes = (np.full(len(samples), size) for size in pixels.shape[2:])
        heights, widths = sizes
        boxes = boxes_of_views(recipes, self._settings.seed, epoch, samples, heights, widths)
        crops = [crop_batch(pixels, box, recipe.size) for box, recipe in zip(boxes, recipes, strict=True)]
        full, small = crops[: self._num_views], crops[self._num_views :]
        replaced = tuple((int(s), self._bad[int(s)]) for s in samples if int(s) in self._bad) if self._bad else ()
        labels = self._labels[torch.from_numpy(samples)]
        return Crops(torch.stack(full), samples, labels, epoch, replaced, torch.stack(small) if small else None)


def crop_batch(pixels: Tensor, boxes: np.ndarray, side: int) -> Tensor:
    """A box of each image, resized bilinearly with antialias, as Pillow's and torch's separable uint8 resize does it.

    Args:
        pixels: float (N, 3, H, W) holding whole numbers 0..255.
        boxes: int64 (N, 4), top, left, height, width.
        side: pixels of the square result.

    Returns:
        uint8 (N, side, side, 3).
    """
    top, left, height, width = to_device(boxes, pixels.device).double().unbind(1)
    across, across_unit = _resize_matrix(left, width, pixels.shape[3], side)  # (N, side, W)
    down, down_unit = _resize_matrix(top, height, pixels.shape[2], side)  # (N, side, H)
    # Horizontal first, rounded to whole levels in between, as the uint8 kernels do.
    rows = pixels.flatten(1, 2) @ across.transpose(1, 2)
    rows = (rows / across_unit).add_(0.5).floor_().view(*pixels.shape[:3], side)
    square = ((down.unsqueeze(1) @ rows) / down_unit.unsqueeze(1)).add_(0.5).floor_().clamp_(0, 255)
    return square.to(torch.uint8).permute(0, 2, 3, 1)


def _resize_matrix(start: Tensor, length: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Triangle filters in the fixed point of torch's uint8 resize, so that the result is the same to the bit.

    Whole weights below 2**15 times levels below 2**8 sum up exactly in float32.

    Returns:
        float32 (N, side, size), row i the weights of output pixel i over a line's pixels start..start+length-1, and
        float32 (N, 1, 1), the sum that stands for 1, a power of two.
    """
    scale = (length / side).view(-1, 1, 1)
    support = scale.clamp_min(1)
    centre = (torch.arange(side, device=start.device) + 0.5).view(1, -1, 1) * scale
    position = torch.arange(size, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    inside = (position >= 0) & (position < length.view(-1, 1, 1))
    weight = (1 - (position + 0.5 - centre).abs() / support).clamp_min_(0) * inside
    weight /= weight.sum(2, keepdim=True)
    # The largest power of two that keeps the largest weight within int16.
    largest = weight.amax((1, 2), keepdim=True)
    unit = torch.exp2(torch.floor(torch.log2((2**15 - 0.5) / largest)))
    return (weight * unit).add_(0.5).floor_().float(), unit.float()
