"""Worker processes that decode an image once and crop it for every view, with torchvision's and torch's kernels."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from simsiam.data.crops import Crops
from simsiam.data.image_set import ImageSet
from simsiam.data.loader_workers import in_workers
from simsiam.data.plan import Plan, micro_batch
from simsiam.data.side_copies import SideCopies
from simsiam.data.stand_ins import read_or_next
from simsiam.data.views import boxes_of_views
from simsiam.settings.tree import Run, Views
from simsiam.settings.view_recipes import view_recipes


class TorchvisionLoader:
    """Crops by worker processes; a unit of their work is one micro-batch of this rank."""

    def __init__(self, images: ImageSet, plan: Plan, settings: Run, num_views: int, device: torch.device) -> None:
        self._tasks = _CropTasks(images, plan, settings, num_views)
        self._accumulate, self._workers, self._device = settings.accumulate, settings.workers, torch.device(device)
        self._to_device = SideCopies(self._device)

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """Micro-batches of each step, in pinned memory where the device is a GPU."""
        # One pass over all steps that are left: no worker ever waits at the end of an epoch.
        numbers = range(start * self._accumulate, stop * self._accumulate)
        pin = self._device.type == "cuda"
        tasks = in_workers(self._tasks, numbers, self._workers, pin_memory=pin)
        step: list[Crops] = []
        for crops in tasks:
            small = None if crops.small is None else self._to_device(crops.small)
            step.append(crops._replace(images=self._to_device(crops.images), small=small))
            if len(step) == self._accumulate:
                yield step
                step = []


class _CropTasks(Dataset):
    """Task t is micro-batch t % accumulate of step t // accumulate, of this rank."""

    def __init__(self, images: ImageSet, plan: Plan, settings: Run, num_views: int) -> None:
        self.images, self.plan, self.settings, self.num_views = images, plan, settings, num_views

    def __getitem__(self, task: int) -> Crops:
        samples = micro_batch(self.plan, task, self.settings.accumulate)
        epoch = self.plan.epoch(task // self.settings.accumulate)
        recipes = view_recipes(self.settings, epoch, self.num_views)
        full, small = (_empty(part, len(samples)) for part in (recipes[: self.num_views], recipes[self.num_views :]))
        targets = [*full, *(small if small is not None else ())]
        labels = torch.empty(len(samples), dtype=torch.int64)
        replaced: list[tuple[int, str]] = []
        for row, sample in enumerate(samples):
            image, taken, failed = read_or_next(self.images, int(sample), self.images.read)
            if failed is not None:
                replaced.append(failed)
            labels[row] = int(self.images.labels[taken])
            height, width = image.shape[1:]
            # Drawn for the planned sample, so that the views of the others do not depend on a bad file.
            boxes = boxes_of_views(recipes, self.settings.seed, epoch, samples[row : row + 1], [height], [width])
            for target, recipe, box in zip(targets, recipes, boxes[:, 0], strict=True):
                target[row] = crop(image, box, recipe.size)
        return Crops(full, samples, labels, epoch, tuple(replaced), small)


def _empty(recipes: list[Views], n: int) -> Tensor | None:
    """Room for the crops of n images by recipes of one size, uint8 (V, N, S, S, 3); None for no recipe."""
    return torch.empty(len(recipes), n, *[recipes[0].size] * 2, 3, dtype=torch.uint8) if recipes else None


def crop(image: Tensor, box: np.ndarray, side: int) -> Tensor:
    """The box (top, left, height, width) of a uint8 (3, H, W) image as uint8 (side, side, 3), bilinear, antialiased.

    Sliced first and resized after, as torchvision's resized_crop: a resize of a region would read past its edge.
    """
    top, left, height, width = (int(b) for b in box)
    region = image[:, top : top + height, left : left + width].unsqueeze(0)
    resized = F.interpolate(region, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)
