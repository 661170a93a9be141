"""`simsiam check-data`: what is in a dataset, what of it cannot be read, and how fast the loader makes crops of it."""

import argparse
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsiam.data.image_set import ImageSet

HELP = "count classes and images, find unreadable files, measure pairs/s of the loader alone"
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam check-data`."""
    parser.add_argument("data", metavar="PATH", help="image folder, or a built-in dataset")
    parser.add_argument("--size", type=int, default=224, help="side of the crops to time, pixels (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a batch to time (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="worker processes (default %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to time the loader (default %(default)s)")
    parser.add_argument("--download", action="store_true", help="download a built-in dataset that is not on disk")


def run(arguments: argparse.Namespace) -> None:
    """Prints the counts and the rate. Raises UserError for a set that training would refuse, too."""
    from simsiam.data.datasets import has_split, open_dataset

    train = open_dataset(arguments.data, "pretrain", download=arguments.download)
    splits = {"train": train}
    if has_split(arguments.data, "val"):
        splits["val"] = open_dataset(arguments.data, "val", classes=train.classes or None)
    for name, images in splits.items():
        _describe(name, images)
    unreadable = {name: _unreadable(name, images, arguments.workers) for name, images in splits.items()}
    for name, bad in unreadable.items():
        print(f"{name:<8}{len(bad):,} unreadable")
        for sample, reason in bad[:_SHOWN]:
            print(f"        {splits[name].name(sample)}: {reason}")
        if len(bad) > _SHOWN:
            print(f"        and {len(bad) - _SHOWN:,} more")
    if len(unreadable["train"]) < len(train):
        _time_loader(train, arguments)


def _describe(name: str, images: "ImageSet") -> None:
    import numpy as np

    labelled = images.labels[images.labels >= 0]
    print(
        f"{name:<8}{len(images):,} images, {len(images) - len(labelled):,} without label, {len(images.classes)} classes"
    )
    if len(labelled):
        counts = np.bincount(labelled, minlength=len(images.classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        print(
            f"        images per class: {counts.min():,} ({images.classes[few]}) to {counts.max():,} "
            f"({images.classes[many]}), median {int(np.median(counts)):,}"
        )


def _unreadable(name: str, images: "ImageSet", workers: int) -> list[tuple[int, str]]:
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from simsiam.data.image_set import BadImage

    def reason(sample: int) -> tuple[int, str]:
        try:
            images.read(sample)
            return sample, ""
        except BadImage as error:
            return sample, str(error)

    class Read(torch.utils.data.Dataset):
        def __getitem__(self, chunk: range) -> list[tuple[int, str]]:
            return [pair for pair in map(reason, chunk) if pair[1]]

    chunks = [range(start, min(start + 256, len(images))) for start in range(0, len(images), 256)]
    loader = DataLoader(Read(), sampler=chunks, batch_size=None, num_workers=min(workers, len(chunks)))
    return [pair for bad in tqdm(loader, desc=f"reading {name}", unit=" x 256 images", disable=None) for pair in bad]


def _time_loader(train: "ImageSet", arguments: argparse.Namespace) -> None:
    import torch

    from simsiam.data.loaders import choose_images, make_loader
    from simsiam.data.plan import Plan
    from simsiam.settings.tree import Run, Views

    batch = min(arguments.batch_size, len(train))
    settings = Run(batch_size=batch, workers=arguments.workers, views=Views(size=arguments.size, resize=arguments.size))
    images, why = choose_images(train, settings, show_progress=True)
    loader = make_loader(images, Plan(len(images), batch, 0), settings, 2, torch.device("cpu"))
    steps = loader.steps(0, 1 << 20)
    next(steps)  # workers start and the first files are read
    done, began = 0, time.perf_counter()
    for _ in steps:
        done += 1
        if time.perf_counter() - began > arguments.seconds:
            break
    size = f"{arguments.size}x{arguments.size}"
    rate = done * batch / (time.perf_counter() - began)
    print(f"loader  {rate:,.0f} pairs/s of two {size} crops, {arguments.workers} workers ({why})")
