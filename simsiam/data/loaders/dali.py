"""JPEG files decoded and cropped by DALI: on the GPU, or by its CPU threads where there is none.

An image is decoded once and whole, and its crops are cut out and then resized: a resize of a region would read past
its edge, and decoding regions on the GPU crashes nvImageCodec 0.9 (NVIDIA/nvImageCodec#55). DALI sees only what all
decoders agree on; anything else (PNG, CMYK, 12-bit, cut short) is decoded here, by the code of the other loaders, and
whatever DALI refuses all the same sends its batch that way too.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simsiam.data.crops import Crops
from simsiam.data.decode import MAX_PIXELS, decode, jpeg_header
from simsiam.data.encoded import EncodedImages
from simsiam.data.loaders.torchvision import crop
from simsiam.data.plan import Plan, micro_batch
from simsiam.data.stand_ins import read_or_next
from simsiam.data.to_device import to_device
from simsiam.data.views import boxes_of_views
from simsiam.settings.tree import Dali, Run
from simsiam.settings.view_recipes import view_recipes

_TAIL = 4096  # bytes in which a whole JPEG has its end marker, with room for what some cameras append
_DECODER = "decoders.image"  # in an error of DALI that an image is to blame for, unless it is the device's
_OF_THE_DEVICE = re.compile(
    r"allocat|out of memory|cuda (runtime|driver)? ?(api )?error"
    r"|nvImageCodec failure: '#(5|15|21)'",  # allocator, device memory, CUDA call, by nvimgcodec.h
    re.IGNORECASE,
)
_REFUSED = re.compile(r"Failed to decode sample #(\d+)")

STAND_IN_SIZE = (8, 8)
_STAND_IN = io.BytesIO()
Image.new("RGB", STAND_IN_SIZE).save(_STAND_IN, "JPEG")
"""A JPEG in the place of an image that is decoded here, so that a batch keeps its size."""


class Fetched(NamedTuple):
    """One image on its way to DALI.

    Attributes:
        taken: the sample whose image this is; the planned one, or its stand-in.
        data: the JPEG; empty where `pixels` are decoded already.
        height, width: pixels.
        pixels: uint8 (3, H, W), or None.
        failed: (sample, reason) where the planned image cannot be used.
    """

    taken: int
    data: bytes
    height: int
    width: int
    pixels: Tensor | None = None
    failed: tuple[int, str] | None = None


class DaliLoader:
    """Crops by DALI, fed by the plan: a batch of its pipeline is one micro-batch of this rank."""

    def __init__(
        self, images: EncodedImages, plan: Plan, settings: Run, num_views: int, device: torch.device | str
    ) -> None:
        self._images, self._plan, self._settings, self._num_views = images, plan, settings, num_views
        self._device = torch.device(device)
        self._batch = plan.global_batch // plan.world_size // settings.accumulate
        self._refused: set[int] = set()  # samples that DALI failed on
        self._sides = [recipe.size for recipe in view_recipes(settings, 0, num_views)]  # of every epoch

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """Micro-batches of each step, on the training device."""
        accumulate = self._settings.accumulate
        tasks = range(start * accumulate, stop * accumulate)
        small = self._sides[self._num_views :]
        batches = through_pipeline(
            tasks,
            samples=self._samples,
            fetch=self._fetch,
            refused=self._refused,
            arguments=self._arguments,
            build=lambda feed: build_crops(feed, self._batch, self._sides, self._settings, self._device),
            outputs=[(self._num_views, self._sides[0]), *([(len(small), small[0])] if small else [])],
            settings=self._settings,
            device=self._device,
        )
        step: list[Crops] = []
        with closing(batches):
            for task, batch in zip(tasks, batches, strict=True):
                step.append(self._crops(task, *batch))
                if len(step) == accumulate:
                    yield step
                    step = []

    def _samples(self, task: int) -> np.ndarray:
        return micro_batch(self._plan, task, self._settings.accumulate)

    def _epoch(self, task: int) -> int:
        return self._plan.epoch(task // self._settings.accumulate)

    def _fetch(self, sample: int) -> Fetched:
        fetched, _, failed = read_or_next(self._images, sample, lambda s: fetch_one(self._images, s, self._refused))
        return fetched._replace(failed=failed)

    def _boxes(self, task: int, fetched: list[Fetched]) -> np.ndarray:
        heights, widths = (np.array([getattr(item, name) for item in fetched]) for name in ("height", "width"))
        recipes = view_recipes(self._settings, self._epoch(task), self._num_views)
        return boxes_of_views(recipes, self._settings.seed, self._epoch(task), self._samples(task), heights, widths)

    def _arguments(self, task: int, fetched: list[Fetched]) -> list[np.ndarray]:
        """Corner, extent and margin of each view's crops, (N, 2) each."""
        here = [row for row, item in enumerate(fetched) if not item.data]
        arguments: list[np.ndarray] = []
        for box, side in zip(self._boxes(task, fetched), self._sides, strict=True):
            box[here] = (0, 0, *STAND_IN_SIZE)
            corner, extent = box[:, :2], box[:, 2:]
            arguments += [corner, extent, margin(extent, side)]
        return arguments

    def _crops(self, task: int, made: list[Tensor], fetched: list[Fetched], arguments: list[np.ndarray]) -> Crops:
        extents = iter(arguments[1::3])
        for views in made:
            gain = edge_gain(np.stack(list(islice(extents, len(views)))), views.shape[2])
            mend_edges(views, gain, gain)
        here = [row for row, item in enumerate(fetched) if item.pixels is not None]
        for view, box, side in zip(chain(*made), self._boxes(task, fetched), self._sides) if here else ():
            for row in here:
                view[row] = crop(fetched[row].pixels, box[row], side).to(self._device, non_blocking=True)
        full, small = made if len(made) == 2 else (*made, None)
        labels = torch.from_numpy(self._images.labels[[item.taken for item in fetched]])
        replaced = tuple(item.failed for item in fetched if item.failed is not None)
        return Crops(full, self._samples(task), labels, self._epoch(task), replaced, small)


def through_pipeline(
    tasks: range,
    *,
    samples: Callable[[int], np.ndarray],
    fetch: Callable[[int], Fetched],
    refused: set[int],
    arguments: Callable[[int, list[Fetched]], list[np.ndarray]],
    build: Callable[[Callable[[], tuple]], Any],
    outputs: Sequence[tuple[int, int]],
    settings: Run,
    device: torch.device,
) -> Iterator[tuple[list[Tensor], list[Fetched], list[np.ndarray]]]:
    """For each task, what the pipeline makes of it, its images and its arguments.

    What it makes is a uint8 (count, N, S, S, 3) for each (count, S) of `outputs`, which come in this order.

    Rows of images that are decoded here hold nothing yet. Of a batch that DALI fails on these are all, and `fetch`
    decodes its images from now on.

    Args:
        samples: the sample ids of a task. fetch: one image. refused: the samples that DALI failed on; grows.
        arguments: what the pipeline gets beside the JPEGs, (N, 2) each. build: a pipeline from its source.
    """
    pool = ThreadPoolExecutor(max(4, threads(settings)))
    feed = _Feed(
        lambda task: [pool.submit(fetch, int(sample)) for sample in samples(task)],
        tasks,
        settings.dali.prefetch,
        arguments,
    )
    pipeline: Any = None
    try:
        for task in tasks:
            pipeline = pipeline or build(feed)
            try:
                made, (fetched, given) = run(pipeline, outputs, device), feed.done()
            except RuntimeError as error:
                if _DECODER not in str(error) or _OF_THE_DEVICE.search(str(error)):
                    raise
                pipeline = None  # it is lost with the batch
                batch = feed.fail()
                of_batch = {item.taken for item in batch} - refused
                refused |= of_batch
                fetched = list(pool.map(fetch, samples(task).tolist()))
                if named := _REFUSED.search(str(error)):  # then the others are DALI's again in later epochs
                    refused -= of_batch - {batch[int(named[1])].taken}
                shapes = [(count, len(fetched), side, side, 3) for count, side in outputs]
                made = [torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes]
                given = arguments(task, fetched)
            yield made, fetched, given
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        del pipeline


def fetch_one(images: EncodedImages, sample: int, refused: set[int]) -> Fetched:
    """One image, as bytes where DALI can be trusted with them, else decoded. Raises `BadImage`."""
    data = images.read_bytes(sample)
    header = jpeg_header(data)
    whole = data.rfind(b"\xff\xd9", max(0, len(data) - _TAIL)) >= 0
    trusted = header is not None and header.ordinary and whole and sample not in refused
    if trusted and header.height * header.width <= MAX_PIXELS:
        return Fetched(sample, data, header.height, header.width)
    pixels = decode(data)
    return Fetched(sample, b"", *pixels.shape[1:], pixels=pixels)


class _Feed:
    """What the pipeline asks for next, read ahead; and what it has asked for and not yet given back."""

    def __init__(
        self,
        submit: Callable[[int], list[Future[Fetched]]],
        tasks: range,
        ahead: int,
        arguments: Callable[[int, list[Fetched]], list[np.ndarray]],
    ) -> None:
        self._submit, self._arguments, self._ahead = submit, arguments, ahead
        self._tasks = iter(tasks)
        self._reading: deque[tuple[int, list[Future[Fetched]]]] = deque()
        self._inside: deque[tuple[list[Fetched], list[np.ndarray]]] = deque()
        self._again: deque[tuple[list[Fetched], list[np.ndarray]]] = deque()

    def __call__(self) -> tuple[Any, ...]:
        while len(self._reading) <= self._ahead and (task := next(self._tasks, None)) is not None:
            self._reading.append((task, self._submit(task)))
        if self._again:
            fetched, arguments = self._again.popleft()
        elif self._reading:
            task, futures = self._reading.popleft()
            fetched = [future.result() for future in futures]
            arguments = self._arguments(task, fetched)
        else:
            raise StopIteration
        self._inside.append((fetched, arguments))
        jpegs = [np.frombuffer(item.data or _STAND_IN.getvalue(), np.uint8) for item in fetched]
        return jpegs, *(values.astype(np.int32) for values in arguments)

    def done(self) -> tuple[list[Fetched], list[np.ndarray]]:
        """The batch that the pipeline has just given back, with its arguments."""
        return self._inside.popleft()

    def fail(self) -> list[Fetched]:
        """The batch that the pipeline failed on; those behind it are fed again, to the next pipeline."""
        fetched, _ = self._inside.popleft()
        self._again.extend(self._inside)
        self._inside.clear()
        return fetched


def threads(settings: Run) -> int:
    """DALI's threads per rank."""
    return max(1, settings.dali.threads or settings.workers)


def build_crops(
    source: Callable[[], tuple], batch: int, sides: Sequence[int], settings: Run, device: torch.device
) -> Any:
    """A pipeline from (JPEGs; corner, extent and margin for each view) to uint8 (N, S, S, 3) for each view's side."""
    from nvidia.dali import fn, types

    def graph() -> tuple:
        kinds, dims = [types.UINT8, *[types.INT32] * 3 * len(sides)], [1] * (1 + 3 * len(sides))
        jpegs, *boxes = fn.external_source(source, num_outputs=len(dims), dtype=kinds, ndim=dims, batch=True)
        images = decoded(jpegs, settings.dali, device)
        views = []
        for corner, extent, frame, side in zip(boxes[::3], boxes[1::3], boxes[2::3], sides, strict=True):
            cut = fn.slice(images, corner, extent, axes=[0, 1])
            views.append(resized(cut, extent, frame, [side] * 2))
        return tuple(views)

    return built(graph, batch, settings, device)


def decoded(jpegs: Any, dali: Dali, device: torch.device) -> Any:
    """RGB of JPEGs, as Pillow and torchvision decode them."""
    from nvidia.dali import fn, types

    gpu = {"device": "mixed", "hw_decoder_load": dali.hw_decoder_load} if device.type == "cuda" else {"device": "cpu"}
    # Fancy upsampling is what libjpeg, and so Pillow and torchvision, does by default; nvJPEG does not.
    return fn.decoders.image(jpegs, output_type=types.RGB, jpeg_fancy_upsampling=True, adjust_orientation=False, **gpu)


def resized(images: Any, extent: Any, frame: Any, size: Any) -> Any:
    """Images of `extent` pixels resized to `size`, with `frame` black pixels around them (see `margin`)."""
    from nvidia.dali import fn, types

    framed = fn.slice(images, -frame, extent + 2 * frame, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)
    start, stop = (fn.cast(edge, dtype=types.FLOAT) for edge in (frame, frame + extent))
    return fn.resize(framed, size=size, roi_start=start, roi_end=stop, interp_type=types.INTERP_LINEAR, antialias=True)


def margin(extent: np.ndarray, side: int | np.ndarray) -> np.ndarray:
    """Black pixels that go around a crop before it is resized, so that what its edge takes from outside is known.

    Where a filter reaches past the edge, Pillow and torch leave the outside out and weigh the rest by more; DALI
    repeats the edge pixel, and is up to 18 levels off. With black outside, the rest has only to be weighed by more
    afterwards. An enlarged side needs none: only the edge pixel is in reach there, and repeating it is the same.
    """
    return np.where(extent > side, np.ceil(extent / side).astype(np.int64) + 1, 0)


def edge_gain(extent: np.ndarray, side: int | np.ndarray) -> np.ndarray:
    """All weight of the filter of an outermost pixel over its weight inside the image; float64, shaped as `extent`."""
    scale = np.maximum(extent / side, 1)[..., None]
    reach = int(np.ceil(scale.max())) + 1
    pixel = np.arange(-reach, 2 * reach) + 0.5
    weight = np.maximum(1 - np.abs(pixel - scale / 2) / scale, 0)
    gain = weight.sum(-1) / (weight * (pixel > 0)).sum(-1)
    return np.where(extent > side, gain, 1.0)


def mend_edges(views: Tensor, first: np.ndarray, last: np.ndarray) -> None:
    """Weighs the outermost pixels of uint8 (V, N, S, S, 3) in place: first and last line and column, by (V, N, 2)."""
    for edge, gain in ((0, first), (-1, last)):
        factor = to_device(gain.astype(np.float32), views.device)[..., None, None]
        for line, weight in ((views[:, :, edge], factor[:, :, 0]), (views[:, :, :, edge], factor[:, :, 1])):
            line.copy_((line * weight + 0.5).floor_().clamp_(max=255))


def built(graph: Callable[[], tuple], batch: int, settings: Run, device: torch.device) -> Any:
    """A pipeline of at most `batch` images with the outputs of a graph."""
    from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch,
        num_threads=threads(settings),
        device_id=device.index or 0 if device.type == "cuda" else None,
        prefetch_queue_depth=settings.dali.prefetch,
    )
    with pipeline:
        pipeline.set_outputs(*graph())
    pipeline.build()
    return pipeline


def run(pipeline: Any, outputs: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """The next batch, as in `through_pipeline`. Raises RuntimeError where an image cannot be decoded."""
    from nvidia.dali.plugin.pytorch import feed_ndarray

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    made, batches = iter(pipeline.run(stream)), []
    for count, _ in outputs:
        parts = [output.as_tensor() for output in islice(made, count)]
        views = torch.empty((count, *parts[0].shape()), dtype=torch.uint8, device=device)
        # DALI's own copy on this stream, for which it waits before it writes there again. A tensor that shares its
        # memory (DLPack) has it wait for the whole device once it is gone.
        for view, part in zip(views, parts, strict=True):
            feed_ndarray(part, view, cuda_stream=stream)
        batches.append(views)
    return batches
