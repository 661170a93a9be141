"""Pairs/s of the loaders beside the official recipe's (PIL, both views made in the worker), in turn in one run.

    python benchmarks/loaders.py IMAGES [--rounds 5] [--workers 2] [--pairs 400]
    python benchmarks/loaders.py IMAGES --step [--batch-size 8] [--precision auto]     real over cached training steps

IMAGES is a folder of photographs (FOLDER/CLASS/*.JPEG). `crops` ends with uint8 crops, `views` with normalised float
views, which is where the official loader ends. Workers and DALI's threads are as many as cores; rates are per machine.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from simsiam.data.augment import Augment
from simsiam.data.loaders import dali_is_installed, make_loader
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.distributed.runtime import running
from simsiam.methods.simsiam import SimSiam
from simsiam.settings.derive import derive
from simsiam.settings.tree import Pretrain, Run
from simsiam.training.build import build_state
from simsiam.training.step import train_step

BATCH = 50


class Blur:
    """PIL's Gaussian blur with a radius of 0.1 to 2, as the official recipe takes it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class OfficialPairs(Dataset):
    """Two views of each image by torchvision's PIL transforms, made in the worker."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([Blur()], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.paths[number]).convert("RGB")
        return self.view(image), self.view(image)


def official(images: FolderImages, workers: int) -> Iterator[int]:
    paths = [images.root / images.name(sample) for sample in range(len(images))]
    loader = DataLoader(OfficialPairs(paths), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        for first, _ in loader:
            yield len(first)


def ours(images: FolderImages, workers: int, loader: str, views: bool) -> Iterator[int]:
    settings = Run(batch_size=BATCH, workers=workers, loader=loader)
    steps = make_loader(images, Plan(len(images), BATCH, 0), settings, 2, "cpu").steps(0, 1 << 20)
    augment = Augment(settings.views, 0)
    for (crops,) in steps:
        if views:
            augment(crops.images, crops.samples, crops.epoch)
        yield len(crops.samples)


def training(images: FolderImages, arguments: argparse.Namespace) -> None:
    """Pairs/s of ResNet-50 SimSiam steps on one cached batch, and with each loader; in turn, three steps a turn."""
    settings = Pretrain(batch_size=arguments.batch_size, workers=arguments.workers, precision=arguments.precision)
    with running("auto") as runtime:
        plan = Plan(len(images), settings.batch_size, 0)
        state = build_state(SimSiam("resnet50"), settings, derive(settings, 1, len(images)), runtime)
        augment = Augment(settings.views, 0).to(runtime.device)

        def source(loader: str) -> Iterator[torch.Tensor]:
            steps = make_loader(images, plan, replace(settings, loader=loader), 2, runtime.device).steps(0, 1 << 20)
            return (augment(c.images, c.samples, c.epoch) for (c,) in steps)

        loaders = ["torchvision", *(["dali"] if dali_is_installed() else [])]
        cached = next(source("torchvision"))
        sources = {"cached": itertools.repeat(cached), **{name: source(name) for name in loaders}}
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for views in sources.values():
            train_step(state, [(next(views),)])
        for number in range(arguments.rounds):
            for name, views in sources.items():
                began = time.perf_counter()
                for _ in range(3):
                    result = train_step(state, [(next(views),)])
                result.loss.item()  # waits for the device
                rates[name].append(3 * settings.batch_size / (time.perf_counter() - began))
            print(f"round {number + 1}  " + "  ".join(f"{name} {r[-1]:.2f}" for name, r in rates.items()), flush=True)
        print(f"{runtime.device}, {state.precision.name}, batch {settings.batch_size}")
        for name, values in rates.items():
            ratio = median(np.array(values) / np.array(rates["cached"]))
            print(f"{name:<14}{median(values):>9.2f} pairs/s  over cached {ratio:.3f}")


def rate(make: Callable[[], Iterator[int]], pairs: int) -> float:
    """Pairs/s of a loader once its workers run; the batches made ahead while it started are not counted."""
    batches = make()
    for _ in range(4):
        next(batches)
    done, began = 0, time.perf_counter()
    while done < pairs:
        done += next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return done / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--step", action="store_true", help="time training steps instead")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    images, workers = FolderImages(arguments.images), arguments.workers
    if arguments.step:
        training(images, arguments)
        return
    contestants = {
        "official": lambda: official(images, workers),
        "torchvision crops": lambda: ours(images, workers, "torchvision", views=False),
        "torchvision views": lambda: ours(images, workers, "torchvision", views=True),
    }
    if dali_is_installed():
        contestants["dali crops"] = lambda: ours(images, workers, "dali", views=False)
        contestants["dali views"] = lambda: ours(images, workers, "dali", views=True)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with running("cpu"):
        for number in range(arguments.rounds):
            for name, make in contestants.items():
                rates[name].append(rate(make, arguments.pairs))
            print(f"round {number + 1}  " + "  ".join(f"{name} {r[-1]:.0f}" for name, r in rates.items()), flush=True)
    print(f"{'':<20}{'pairs/s':>9}{'spread':>14}{'over official':>16}")
    for name, values in rates.items():
        ratios = np.array(values) / np.array(rates["official"])
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(f"{name:<20}{median(values):>9.0f}{spread:>14}{median(ratios):>16.2f}")


if __name__ == "__main__":
    main()
