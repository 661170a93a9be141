"""Training batches of images and their objects, and test images: by worker processes, in an order that is a function.

A batch leaves its worker as a few long tensors: one tensor an object or an image would use up the open files that a
process may have.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import hflip

from simsiam.data.counter import bits, uniform
from simsiam.data.image_set import BadImage
from simsiam.data.loader_workers import in_workers
from simsiam.data.plan import Plan, micro_batch
from simsiam.data.stand_ins import read_or_next
from simsiam.detection.annotations import DetectionSet
from simsiam.settings.detect import Detect

Target = dict[str, Tensor]
_FLIP, _SAMPLING = 0xF11B, 0x5A3B  # names of streams of random numbers


class Batch(NamedTuple):
    """A micro-batch of one rank.

    Attributes:
        images: uint8 (3, H, W) each, of any size.
        targets: boxes float32 (n, 4), labels int64 (n,) and, for Mask R-CNN, masks uint8 (n, H, W) of each.
        replaced: (sample, reason) of images that could not be read; the next good one and its objects stand in.
        seed: for whatever the network draws in this batch.
    """

    images: list[Tensor]
    targets: list[Target]
    replaced: tuple[tuple[int, str], ...]
    seed: int


class TrainingBatches:
    """The batches of any range of steps, of this rank."""

    def __init__(self, images: DetectionSet, plan: Plan, settings: Detect, device: torch.device) -> None:
        self._tasks = _Tasks(images, plan, settings.flip, settings.accumulate, settings.mask)
        self._accumulate, self._workers, self._device = settings.accumulate, settings.workers, device

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For each step from `start` to before `stop`, its micro-batches, on the device."""
        numbers = range(start * self._accumulate, stop * self._accumulate)
        pin = self._device.type == "cuda"
        tasks = in_workers(self._tasks, numbers, self._workers, pin_memory=pin)
        step: list[Batch] = []
        for packed in tasks:
            step.append(packed.on(self._device))
            if len(step) == self._accumulate:
                yield step
                step = []


def read_annotated(images: DetectionSet, image: int) -> Tensor:
    """The image, uint8 (3, H, W). Raises `BadImage` where it cannot be read, or has another size than its boxes."""
    pixels, said = images.read(image), images.size(image)
    if tuple(pixels.shape[1:]) != said:
        height, width = pixels.shape[1:]
        raise BadImage(f"it is {width} x {height} pixels, and its annotation says {said[1]} x {said[0]}")
    return pixels


class ToTest(NamedTuple):
    """An image to test on: its number in the set, uint8 (3, H, W); or None, and why it cannot be read."""

    image: int
    pixels: Tensor | None
    why: str = ""


def images_to_test(images: DetectionSet, numbers: range, workers: int) -> Iterator[ToTest]:
    """Some images of a set, in order."""
    return iter(in_workers(_Images(images), numbers, workers, ahead=4))


class _Packed(NamedTuple):
    """A batch as few tensors: pixels and masks one after another, sizes (N, 2), objects of each image (N,)."""

    pixels: Tensor
    sizes: Tensor
    counts: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    replaced: tuple[tuple[int, str], ...]
    seed: int

    def on(self, device: torch.device) -> Batch:
        sizes, counts = self.sizes.tolist(), self.counts.tolist()
        areas = [height * width for height, width in sizes]
        pixels = self.pixels.to(device, non_blocking=True).split([3 * area for area in areas])
        parts = {"boxes": self.boxes, "labels": self.labels}
        split = {name: part.to(device, non_blocking=True).split(counts) for name, part in parts.items()}
        if self.masks is not None:
            masks = self.masks.to(device, non_blocking=True).split([n * area for n, area in zip(counts, areas)])
            split["masks"] = tuple(m.view(n, *size) for m, n, size in zip(masks, counts, sizes))
        images = [flat.view(3, *size) for flat, size in zip(pixels, sizes)]
        targets = [dict(zip(split, of_image)) for of_image in zip(*split.values())]
        return Batch(images, targets, self.replaced, self.seed)


class _Tasks(Dataset):
    """Task t is micro-batch t % accumulate of step t // accumulate, of this rank."""

    def __init__(self, images: DetectionSet, plan: Plan, flip: float, accumulate: int, masks: bool) -> None:
        self._images, self._plan, self._flip = images, plan, flip
        self._accumulate, self._masks = accumulate, masks

    def __getitem__(self, task: int) -> _Packed:
        plan = self._plan
        samples = micro_batch(plan, task, self._accumulate)
        flips = uniform(plan.seed, _FLIP, plan.epoch(task // self._accumulate), samples) < self._flip
        images: list[Tensor] = []
        targets: list[Target] = []
        replaced: list[tuple[int, str]] = []
        for sample, flipped in zip(samples.tolist(), flips.tolist()):
            image, taken, failed = read_or_next(self._images, sample, self._read)
            if failed is not None:
                replaced.append(failed)
            target = self._images.training_target(taken, masks=self._masks)
            images.append(hflip(image) if flipped else image)
            targets.append(_flipped(target, image.shape[2]) if flipped else target)
        return _Packed(
            torch.cat([image.reshape(-1) for image in images]),
            torch.tensor([image.shape[1:] for image in images]),
            torch.tensor([len(target["labels"]) for target in targets]),
            torch.cat([target["boxes"] for target in targets]),
            torch.cat([target["labels"] for target in targets]),
            torch.cat([target["masks"].reshape(-1) for target in targets]) if self._masks else None,
            tuple(replaced),
            int(bits(plan.seed, _SAMPLING, task, plan.rank)) >> 1,  # torch's generators take 63 bits
        )

    def _read(self, image: int) -> Tensor:
        return read_annotated(self._images, image)


class _Images(Dataset):
    def __init__(self, images: DetectionSet) -> None:
        self._images = images

    def __getitem__(self, image: int) -> ToTest:
        try:
            return ToTest(image, read_annotated(self._images, image))
        except BadImage as error:
            return ToTest(image, None, str(error))


def _flipped(target: Target, width: int) -> Target:
    boxes = target["boxes"]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    masks = {"masks": hflip(target["masks"])} if "masks" in target else {}
    return {**target, "boxes": mirrored, **masks}
