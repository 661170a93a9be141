"""What a recipe takes on so many GPUs, from a few steps measured on one device here."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from simsiam.commands.say import span
from simsiam.commands.throughput import loader_rate
from simsiam.data.loaders import choose_images, make_loader
from simsiam.data.open import open_images
from simsiam.data.plan import Plan
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.methods.base import Method
from simsiam.methods.registry import build_method
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.run.journal import memory_bytes
from simsiam.settings.derive import derive
from simsiam.settings.tree import Pretrain
from simsiam.training.build import build_state
from simsiam.training.computing import compute_as_asked
from simsiam.training.step import train_step

_IMAGENET = 1_281_167
_LATENCY = 25e-6  # seconds that a small collective takes whatever its size
_BACKWARD = 2 / 3  # part of a step that is the backward pass, under which gradients cross the ranks


@dataclass(frozen=True)
class Measured:
    """Of one device: seconds and bytes of a step of `images`, and of one of half as many."""

    images: int
    seconds: float
    bytes: int
    half_bytes: int

    def bytes_at(self, images: int) -> float:
        """What a step of so many images needs: a part that is there anyway, and a part for each image."""
        per_image = max(0.0, (self.bytes - self.half_bytes) / (self.images - self.images // 2))
        return self.bytes + per_image * (images - self.images)


@dataclass(frozen=True)
class Forecast:
    """Seconds of a step of the whole job, by what they are for; `loader` is how long its batch takes to load."""

    compute: float
    gradients: float
    statistics: float
    loader: float

    @property
    def step(self) -> float:
        """Seconds from one step to the next: the loader works beside, gradients cross under the backward pass."""
        return max(self.compute + self.exposed + self.statistics, self.loader)

    @property
    def exposed(self) -> float:
        """Seconds of the gradients' way that the backward pass does not cover."""
        return max(0.0, self.gradients - _BACKWARD * self.compute)

    @property
    def limit(self) -> str:
        """Which part binds."""
        if self.loader >= self.step:
            return "the loader"
        waits = {"gradients": self.exposed, "batch-norm statistics": self.statistics}
        most = max(waits, key=waits.__getitem__)
        return f"the network between the GPUs ({most})" if waits[most] > self.compute else "the GPU"


def forecast(
    measured: Measured, gpus: int, gradient_bytes: int, norms: int, link: float, loader: float | None
) -> Forecast:
    """Parts of a step in which each GPU has `measured.images` images.

    Args:
        norms: synchronised batch-norm layers, two small collectives each.
        link: bytes a second that a GPU sends and receives to its neighbour in the ring.
        loader: images a second that one GPU's loader makes; None where it is not known.
    """
    ring = 2 * (gpus - 1) / gpus
    return Forecast(
        measured.seconds,
        ring * gradient_bytes / link,
        2 * norms * _LATENCY if gpus > 1 else 0.0,
        measured.images / loader if loader else 0.0,
    )


def plan(
    settings: Pretrain, gpus: int, link: float, steps: int, runtime: Runtime, *, has_data: bool
) -> Iterator[tuple[str, str]]:
    """The plan as titles and lines, each as soon as it is known.

    Args:
        link: GB/s that a GPU sends to the next one.
        steps: that are measured.
        has_data: whether `settings.data` is there to be counted and loaded; else it is as large as ImageNet.

    Raises:
        UserError: the batch does not divide over the GPUs.
    """
    images = open_images(settings, "pretrain", runtime) if has_data else None
    number = _IMAGENET if images is None else len(images)
    numbers = derive(settings, gpus, number)
    each, pieces = numbers.micro_batch, settings.accumulate
    if each < 4:
        raise UserError(f"--gpus {gpus} leaves {each} image(s) a GPU of --batch-size {settings.batch_size}: take fewer")
    device = runtime.device
    cpu = f"this CPU ({torch.get_num_threads()} threads)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    what = f"{settings.method['name']}, {settings.encoder}, views of {settings.views.size} pixels"
    yield "plan", f"{what}; batch {settings.batch_size} = {gpus} GPUs x {pieces} x {each}; measured on {name}"

    method = build_method(settings.method, settings.encoder)
    compute_as_asked(method, settings, runtime)
    method.prepare(number, each)
    measured = measure(method, settings, each, runtime, steps)
    if measured.images < each:
        yield "memory", f"{each} images a GPU do not fit; measured on {measured.images} at a time"
    norms = sum(isinstance(module, ViewBatchNorm) for module in method.modules())
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    rate = None
    if images is not None:
        images, why = choose_images(images, settings, show_progress=False)
        order = Plan(len(images), each, settings.seed)
        rate, _ = loader_rate(make_loader(images, order, settings, method.num_views, device), settings, 3.0, device)
        yield "loader", f"{rate:,.0f} pairs/s for one GPU ({why})"
    width = 2 if settings.reduce_dtype == "bf16" else 4
    parts = forecast(measured, gpus, width * trained, norms, link * 1e9, rate)
    larger = each / measured.images
    parts = replace(parts, compute=larger * pieces * parts.compute, loader=larger * pieces * parts.loader)
    yield (
        "step",
        (
            f"{parts.step:.3f} s: {parts.compute:.3f} s of computing; gradients {parts.gradients:.3f} s at "
            f"{link:g} GB/s, under the backward pass; {norms} norms {parts.statistics:.3f} s"
        ),
    )
    hours = numbers.total_steps * parts.step / 3600
    pairs = settings.batch_size / parts.step
    yield (
        "time",
        (
            f"{span(3600 * hours)} for {settings.epochs} epochs of {number:,} images, {gpus * hours:,.1f} GPU-hours; "
            f"{pairs:,.0f} pairs/s, {pairs / gpus:,.1f} a GPU"
        ),
    )
    room = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else _memory_of_machine()
    fits = max((b for b in (2**n for n in range(16)) if measured.bytes_at(b) < 0.92 * room), default=0)
    yield (
        "memory",
        (
            f"{measured.bytes_at(each) / 2**30:.1f} of {room / 2**30:.1f} GiB at {each} images a GPU; "
            f"{fits} images fit, so a batch of {fits * gpus * pieces}"
        ),
    )
    yield "limit", f"{parts.limit}. Evaluations, checkpoints and the start are not counted"


def measure(method: Method, settings: Pretrain, images: int, runtime: Runtime, steps: int) -> Measured:
    """A device's step on so many random images, or as many as fit, and on half of them."""
    while True:
        try:
            return _measure(method, settings, images, runtime, steps)
        except torch.OutOfMemoryError:
            if images < 8:
                raise
        images //= 2
        method.zero_grad()
        torch.cuda.empty_cache()


def _measure(method: Method, settings: Pretrain, images: int, runtime: Runtime, steps: int) -> Measured:
    alone = replace(settings, batch_size=images, accumulate=1, max_steps=0)
    state = build_state(method, alone, derive(alone, 1, _IMAGENET), runtime)

    def step(size: int) -> float:
        inputs = random_inputs(method, settings, size, runtime.device)
        began = time.perf_counter()
        train_step(state, [inputs])
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    held = []
    for size in (images // 2, images):  # in this order, for the most that a process held never shrinks
        step(size)
        if runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # cuDNN's trials held more, which they do without where there is less
        step(size)
        held.append(memory_bytes(runtime.device))
    return Measured(images, median(step(images) for _ in range(steps)), held[1], held[0])


def random_inputs(method: Method, settings: Pretrain, images: int, device: torch.device) -> tuple[Tensor, ...]:
    """What the method is called with in a step, of noise: views, small ones where the recipe has them, sample ids."""
    side, small = settings.views.size, settings.small_views
    inputs = [torch.randn(method.num_views, images, 3, side, side, device=device)]
    if small.count:
        inputs.append(torch.randn(small.count, images, 3, small.size, small.size, device=device))
    if method.takes_samples:
        inputs.append(torch.arange(images, device=device))
    return tuple(inputs)


def _memory_of_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
