"""The throughput account: how fast each part of a training step is on this machine, and which one limits the rest."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from simsiam.commands.disk_rate import Read, measure_disk
from simsiam.commands.say import span
from simsiam.data.augment import Augment
from simsiam.data.counter import permutation
from simsiam.data.crops import Crops, Loader
from simsiam.data.decode import decode
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage, ImageSet
from simsiam.data.loaders import choose_images, make_loader, takes_dali
from simsiam.data.loaders.torchvision import crop
from simsiam.data.plan import Plan
from simsiam.data.resident import ResidentImages
from simsiam.data.views import crop_boxes
from simsiam.distributed.runtime import Runtime, running
from simsiam.distributed.threads import one_thread, usable_cores
from simsiam.errors import UserError
from simsiam.methods.registry import build_method
from simsiam.settings.derive import derive
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain, Views
from simsiam.training.build import build_state
from simsiam.training.state import TrainState
from simsiam.training.step import train_step

_BATCH, _CPU_BATCH = 64, 8
_SMALL_VIEW = 64  # pixels; at 224 a step of eight images takes a ResNet-50 seconds on a few cores
_IN_MEMORY = 128  # files, and images, that decoding and cropping go round
_MANY_STEPS = 1 << 20


@dataclass(frozen=True)
class Account:
    """Images a second, each with its two views.

    Attributes:
        disk: files that are in no cache, read by as many readers as the loader has; None where that cannot be measured.
        decode, crop: one core; None where the loader holds decoded images.
        augment, step: on the training device, one after the other.
        loader: decoded and cropped on the device by the run's own loader, from the page cache where it holds the files.
        together: what training would do, loader and all.
        shares_cores: the loader works where the steps are computed, so what one takes the other lacks.
    """

    disk: float | None
    decode: float | None
    crop: float | None
    augment: float
    step: float
    loader: float
    together: float
    shares_cores: bool

    def seconds(self) -> dict[str, float]:
        """Part -> seconds of an image, in the loader (decode and crop, which together take what it takes) or after."""
        alone = {"decode": self.decode, "crop": self.crop}
        shares = {part: 1 / rate for part, rate in alone.items() if rate} or {"crop": 1.0}
        whole = sum(shares.values()) * self.loader
        return {
            **{part: share / whole for part, share in shares.items()},
            "augment": 1 / self.augment,
            "step": 1 / self.step,
        }

    def bottleneck(self) -> str:
        """disk, decode, crop, augment or step: the one whose being faster would speed up training most."""
        seconds = self.seconds()
        on_device = {part: seconds[part] for part in ("augment", "step")}
        training = 1 / sum(on_device.values())
        possible = self.together if self.shares_cores else min(self.loader, training)
        if self.disk is not None and self.disk < possible:
            return "disk"
        if not self.shares_cores:
            seconds = on_device if training <= self.loader else {p: s for p, s in seconds.items() if p not in on_device}
        return max(seconds, key=seconds.__getitem__)


def account_for(images: ImageSet, good: np.ndarray, arguments: argparse.Namespace) -> Iterator[str]:
    """Measures, and reports in lines, each as soon as it is known.

    Args:
        images: the training set; good: its readable samples, int64 (n,), one at least.
        arguments: those of `simsiam check-data`.

    Raises:
        UserError: an unknown recipe, a device that is not there, a loader that cannot load this set.
    """
    settings = parse(Pretrain, [], recipe=arguments.recipe, prog="simsiam check-data")
    if len(images) < 2:
        raise UserError(f"{arguments.data} holds one image, and a training step needs two; add --no-throughput")
    with running(arguments.device) as runtime:
        kind = runtime.device.type
        usual = _BATCH if kind == "cuda" or settings.views.size <= _SMALL_VIEW else _CPU_BATCH
        settings = replace(
            settings,
            data=arguments.data,
            batch_size=min(arguments.batch_size or min(usual, settings.batch_size), len(images)),
            accumulate=1,
            max_steps=0,
            workers=arguments.workers,
            loader=arguments.loader,
            device=kind,
        )
        # In an order as the plan's: neighbours on the disk are no neighbours in training.
        order = good[permutation(len(good), settings.seed)]
        yield from _measure(images, order, settings, runtime, arguments.seconds)


def _measure(
    images: ImageSet, order: np.ndarray, settings: Pretrain, runtime: Runtime, seconds: float
) -> Iterator[str]:
    device = runtime.device
    yield _heading(settings, runtime)
    images, why = choose_images(images, settings, show_progress=True)
    is_resident = isinstance(images, ResidentImages)
    disk = decoding = cropping = None
    if is_resident:
        yield _row("disk", "-", "no part of training, and decode neither: the images are in memory")
    else:
        with one_thread():
            if isinstance(images, EncodedImages):
                read = measure_disk(images, order, settings.workers, seconds)
                disk = read.together if read.is_cold else None
                yield from _disk_rows(read)
            decoding, cropping = _measure_decode_and_crop(images, order, settings, seconds)
        if decoding is not None:
            yield _row("decode", _pace(decoding, "images/s"), "one core")
        if cropping is not None:
            yield _row("crop", _pace(cropping, "pairs/s"), "one core, two crops of an image")

    augment = Augment(settings.views, settings.seed).to(device)
    plan = Plan(len(images), settings.batch_size, settings.seed)
    method = build_method(settings.method, settings.encoder)
    state = build_state(method, settings, derive(settings, 1, len(images)), runtime)
    loader = make_loader(images, plan, settings, method.num_views, device)

    loading, cached = loader_rate(loader, settings, seconds, device)
    yield _row("loader", _pace(loading, "pairs/s"), f"alone ({why})")
    views = augment(cached.images, cached.samples, cached.epoch)
    augmenting = _rate(lambda: len(augment(cached.images, cached.samples, cached.epoch)[0]), seconds, device)
    yield _row("augment", _pace(augmenting, "pairs/s"), f"{device.type}, both views")
    stepping = _rate(lambda: _step(state, views), seconds, device)
    yield _row("step", _pace(stepping, "pairs/s"), f"{device.type}, on views in memory")
    together = _measure_together(loader, augment, state, settings, seconds, device)
    length = span(len(images) / together)
    yield _row("together", _pace(together, "pairs/s"), f"as in training; an epoch of {len(images):,} takes {length}")
    shares_cores = is_resident or device.type == "cpu"
    account = Account(disk, decoding, cropping, augmenting, stepping, loading, together, shares_cores)
    yield verdict(account, settings.workers, device.type, uses_dali=takes_dali(images, settings))


def verdict(account: Account, workers: int, device: str, *, uses_dali: bool = False) -> str:
    """One sentence: the bottleneck, by how much, and what would help."""
    part, seconds = account.bottleneck(), account.seconds()
    training = 1 / (seconds["augment"] + seconds["step"])
    if part == "disk":
        how = f"files that are not in memory come from it at {account.disk:,.0f} images/s"
    elif account.shares_cores:
        how = f"it takes {seconds[part] / sum(seconds.values()):.0%} of the time of a pair"
    elif part in ("augment", "step"):
        how = f"the loader is {account.loader / training:.1f} times as fast as the device, and most of it goes here"
    else:
        how = f"the device could take {training:,.0f} pairs/s, and the loader makes {account.loader:,.0f}"
    cores = usable_cores()
    more_workers = f"--workers up to the {cores} cores here" if workers < cores else "more cores"
    or_dali = "" if uses_dali else ", --loader dali"
    gpu = "a GPU" if device == "cpu" else "a faster GPU"
    helps = {
        "disk": "a local SSD, or memory enough to keep all files, would help",
        "decode": f"{more_workers}{or_dali} or files of smaller images would help",
        "crop": f"{more_workers}{or_dali} or smaller views would help" if account.crop else f"{gpu} would help",
        "augment": f"{gpu} or a recipe without blur would help",
        "step": f"{gpu}, more of them or a smaller encoder would help, more workers would not",
    }
    return _row("bottleneck", f"{part}: {how}; {helps[part]}.")


def _disk_rows(read: Read) -> Iterator[str]:
    source = "dropped from the page cache first" if read.is_cold else "FROM THE PAGE CACHE: the disk is not known"
    rates = {"one reader": read.alone} | ({f"{read.readers} readers": read.together} if read.readers > 1 else {})
    for title, (who, rate) in zip(("disk", ""), rates.items()):
        yield _row(title, _pace(rate, "images/s"), f"{who}, {rate * read.mean_bytes / 2**20:,.0f} MiB/s, {source}")


def _measure_decode_and_crop(
    images: ImageSet, order: np.ndarray, settings: Pretrain, seconds: float
) -> tuple[float | None, float | None]:
    """Images a second of one core: decoded, None where nothing is encoded, and cropped twice."""
    samples = order[:_IN_MEMORY].tolist()
    decoded: list[tuple[int, Tensor]] = []
    decoding = None
    if isinstance(images, EncodedImages):
        files = []
        for sample in samples:
            try:
                files.append((sample, images.read_bytes(sample)))
            except BadImage:  # it vanished since
                continue
        turn = cycle(files)

        def decode_next() -> int:
            sample, data = next(turn)
            pixels = decode(data)
            if len(decoded) < len(files):
                decoded.append((sample, pixels))
            return 1

        decoding = _rate(decode_next, seconds) if files else None
    else:
        decoded = [(sample, images.read(sample)) for sample in samples]
    if not decoded:
        return decoding, None
    pixels_in_turn = cycle(decoded)
    return decoding, _rate(lambda: _crop_twice(*next(pixels_in_turn), settings.views, settings.seed), seconds)


def _crop_twice(sample: int, image: Tensor, views: Views, seed: int) -> int:
    height, width = image.shape[1:]
    for view in range(2):
        box = crop_boxes(views, seed, 0, np.array([sample]), view, np.array([height]), np.array([width]))[0]
        crop(image, box, views.size)
    return 1


def loader_rate(loader: Loader, settings: Pretrain, seconds: float, device: torch.device) -> tuple[float, Crops]:
    """Pairs a second of the loader alone, and one of its batches."""
    with _steps(loader, settings, seconds) as steps:
        batch = next(steps)[0]
        return _rate(lambda: len(next(steps)[0].samples), seconds, device, is_warm=True), batch


def _measure_together(
    loader: Loader, augment: Augment, state: TrainState, settings: Pretrain, seconds: float, device: torch.device
) -> float:
    def train(crops: Crops) -> int:
        return _step(state, augment(crops.images, crops.samples, crops.epoch))

    with _steps(loader, settings, seconds, train) as steps:
        return _rate(lambda: train(next(steps)[0]), seconds, device, is_warm=True)


@contextmanager
def _steps(
    loader: Loader, settings: Pretrain, seconds: float, work: Callable[[Crops], object] = lambda _: None
) -> Iterator[Iterator[list[Crops]]]:
    """The loader's steps, after those that its workers made ahead while they started: they would count as fast ones."""
    steps, began = loader.steps(0, _MANY_STEPS), time.perf_counter()
    try:
        work(next(steps)[0])
        for _ in range(2 * settings.workers):
            if time.perf_counter() - began > seconds / 2:
                break
            work(next(steps)[0])
        yield steps
    finally:
        steps.close()  # its workers end


def _step(state: TrainState, views: Tensor) -> int:
    train_step(state, [(views,)])
    return views.shape[1]


def _rate(
    work: Callable[[], int], seconds: float, device: torch.device | None = None, *, is_warm: bool = False
) -> float:
    """Units a second of `work`, which does some and says how many, over `seconds` or one call, whichever is longer.

    Args:
        device: what to wait for, where it is a GPU.
        is_warm: no call before the measured ones is needed.
    """

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    if not is_warm:
        work()
    wait()
    done, calls, at_once, began = 0, 0, 1, time.perf_counter()
    while True:
        done += sum(work() for _ in range(at_once))
        calls += at_once
        wait()
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return done / elapsed
        # Ever more between two waits, which keep a GPU idle for a moment, but no more than there is time for.
        at_once = max(1, min(2 * at_once, int((seconds - elapsed) * calls / elapsed)))


def _heading(settings: Pretrain, runtime: Runtime) -> str:
    size, device = settings.views.size, runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    what = f"{settings.method['name']}, {settings.encoder}, two {size}x{size} views"
    return _row("account", f"{what}, {settings.batch_size} images a step, workers: {settings.workers}; {name}")


def _row(title: str, value: str, note: str = "") -> str:
    return f"{title:<10}  {value:<18}{note}".rstrip() if note else f"{title:<10}  {value}"


def _pace(rate: float, unit: str) -> str:
    return f"{rate:,.0f} {unit}" if rate >= 10 else f"{rate:.2g} {unit}"
