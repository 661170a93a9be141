"""JPEG files decoded and cropped by DALI: on the GPU, or by its CPU threads where there is none.

An image is decoded once and whole, and its crops are cut out and then resized: a resize of a region would read past
its edge, and decoding regions on the GPU crashes nvImageCodec 0.9 (NVIDIA/nvImageCodec#55). DALI sees only what all
decoders agree on; anything else (PNG, CMYK, 12-bit, cut short) is decoded here, by the code of the other loaders, and
whatever DALI refuses all the same sends its batch that way too.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simsiam.data.decode import MAX_PIXELS, decode, jpeg_header
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.loaders import Crops
from simsiam.data.loaders.torchvision import crop, refuse_all_bad
from simsiam.data.plan import Plan
from simsiam.data.views import crop_boxes
from simsiam.settings.tree import Dali, Run

_TAIL = 4096  # bytes in which a whole JPEG has its end marker, with room for what some cameras append
_MOST_REPLACED = 1000
_DECODER = "decoders.image"  # in an error of DALI that an image is to blame for


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

    def steps(self, start: int, stop: int) -> Iterator[list[Crops]]:
        """Micro-batches of each step, on the training device."""
        accumulate, side = self._settings.accumulate, self._settings.views.size
        tasks = range(start * accumulate, stop * accumulate)
        step: list[Crops] = []
        with closing(self._batches(tasks)) as batches:
            for task, (views, fetched) in zip(tasks, batches, strict=True):
                if views is None:
                    views = torch.empty(self._num_views, len(fetched), side, side, 3, dtype=torch.uint8)
                step.append(self._crops(task, views.to(self._device), fetched))
                if len(step) == accumulate:
                    yield step
                    step = []

    def _batches(self, tasks: range) -> Iterator[tuple[Tensor | None, list[Fetched]]]:
        return through_pipeline(
            tasks,
            samples=self._samples,
            fetch=self._fetch,
            refused=self._refused,
            arguments=self._arguments,
            build=lambda feed: build_crops(feed, self._batch, self._num_views, self._settings, self._device),
            settings=self._settings,
            device=self._device,
        )

    def _samples(self, task: int) -> np.ndarray:
        step, micro = divmod(task, self._settings.accumulate)
        return np.split(self._plan.rank_batch(step), self._settings.accumulate)[micro]

    def _fetch(self, sample: int) -> Fetched:
        total, failed = len(self._images), None
        for taken in range(sample, sample + min(total, _MOST_REPLACED)):
            try:
                return fetch_one(self._images, taken % total, self._refused)._replace(failed=failed)
            except BadImage as error:
                failed = failed or (sample, str(error))
        raise refuse_all_bad(self._images, sample)

    def _boxes(self, task: int, fetched: list[Fetched]) -> list[np.ndarray]:
        epoch = self._plan.epoch(task // self._settings.accumulate)
        heights, widths = (np.array([getattr(item, name) for item in fetched]) for name in ("height", "width"))
        samples = self._samples(task)
        views, seed = self._settings.views, self._settings.seed
        return [crop_boxes(views, seed, epoch, samples, view, heights, widths) for view in range(self._num_views)]

    def _arguments(self, task: int, fetched: list[Fetched]) -> list[np.ndarray]:
        """Corner, extent and margin of each view's crops, int32 (N, 2) each."""
        boxes = self._boxes(task, fetched)
        for row, item in enumerate(fetched):
            if not item.data:
                for view in boxes:
                    view[row] = (0, 0, *STAND_IN_SIZE)
        extents = (box[:, 2:] for box in boxes)
        margins = [margin(extent, self._settings.views.size) for extent in extents]
        parts = (part for box, frame in zip(boxes, margins) for part in (box[:, :2], box[:, 2:], frame))
        return [part.astype(np.int32) for part in parts]

    def _crops(self, task: int, views: Tensor, fetched: list[Fetched]) -> Crops:
        boxes, side = self._boxes(task, fetched), self._settings.views.size
        gain = edge_gain(np.stack([box[:, 2:] for box in boxes]), side)
        mend_edges(views, gain, gain)
        decoded = [row for row, item in enumerate(fetched) if item.pixels is not None]
        if decoded:
            for row in decoded:
                for view, box in enumerate(boxes):
                    views[view, row] = crop(fetched[row].pixels, box[row], side).to(self._device)
        labels = torch.from_numpy(self._images.labels[[item.taken for item in fetched]])
        replaced = tuple(item.failed for item in fetched if item.failed is not None)
        return Crops(views, self._samples(task), labels, self._plan.epoch(task // self._settings.accumulate), replaced)


def through_pipeline(
    tasks: range,
    *,
    samples: Callable[[int], np.ndarray],
    fetch: Callable[[int], Fetched],
    refused: set[int],
    arguments: Callable[[int, list[Fetched]], list[np.ndarray]],
    build: Callable[[Callable[[], tuple]], Any],
    settings: Run,
    device: torch.device,
) -> Iterator[tuple[Tensor | None, list[Fetched]]]:
    """For each task, what the pipeline makes of it, uint8 (outputs, N, S, S, 3), and the images that it was given.

    A batch that DALI fails on gives None: all its images are then decoded, and `fetch` will decode them from now on.

    Args:
        samples: the sample ids of a task. fetch: one image. refused: the samples that DALI failed on; grows.
        arguments: what the pipeline gets beside the JPEGs. build: a pipeline from its source.
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
                made, fetched = run(pipeline, device), feed.done()
            except RuntimeError as error:
                if _DECODER not in str(error):
                    raise
                # The pipeline is lost with the batch.
                pipeline, made = None, None
                refused.update(item.taken for item in feed.fail())
                fetched = [fetch(int(sample)) for sample in samples(task)]
            yield made, fetched
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
        self._inside: deque[tuple[int, list[Fetched]]] = deque()
        self._again: deque[tuple[int, list[Fetched]]] = deque()

    def __call__(self) -> tuple[Any, ...]:
        while len(self._reading) <= self._ahead and (task := next(self._tasks, None)) is not None:
            self._reading.append((task, self._submit(task)))
        if self._again:
            task, fetched = self._again.popleft()
        elif self._reading:
            task, futures = self._reading.popleft()
            fetched = [future.result() for future in futures]
        else:
            raise StopIteration
        self._inside.append((task, fetched))
        jpegs = [np.frombuffer(item.data or _STAND_IN, np.uint8) for item in fetched]
        return jpegs, *self._arguments(task, fetched)

    def done(self) -> list[Fetched]:
        """The batch that the pipeline has just given back."""
        return self._inside.popleft()[1]

    def fail(self) -> list[Fetched]:
        """The batch that the pipeline failed on; those behind it are fed again, to the next pipeline."""
        _, fetched = self._inside.popleft()
        self._again.extend(self._inside)
        self._inside.clear()
        return fetched


def _stand_in() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", STAND_IN_SIZE).save(file, "JPEG")
    return file.getvalue()


STAND_IN_SIZE = (8, 8)
_STAND_IN = _stand_in()
"""Takes the place of an image that is decoded here, so that a batch keeps its size."""


def threads(settings: Run) -> int:
    """DALI's threads per rank."""
    return max(1, settings.dali.threads or settings.workers)


def build_crops(source: Callable[[], tuple], batch: int, num_views: int, settings: Run, device: torch.device) -> Any:
    """A pipeline from (JPEGs, corner and extent for each view) to uint8 (N, S, S, 3) for each view."""
    from nvidia.dali import fn, types

    def graph() -> tuple:
        kinds, dims = [types.UINT8, *[types.INT32] * 3 * num_views], [1] * (1 + 3 * num_views)
        jpegs, *boxes = fn.external_source(source, num_outputs=len(dims), dtype=kinds, ndim=dims, batch=True)
        images = decoded(jpegs, settings.dali, device)
        views = []
        for corner, extent, margin in zip(boxes[::3], boxes[1::3], boxes[2::3], strict=True):
            crop = fn.slice(images, corner, extent, axes=[0, 1])
            framed = fn.slice(
                crop, -margin, extent + 2 * margin, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
            )
            region = {
                "roi_start": fn.cast(margin, dtype=types.FLOAT),
                "roi_end": fn.cast(margin + extent, dtype=types.FLOAT),
            }
            views.append(resized(framed, [settings.views.size] * 2, **region))
        return tuple(views)

    return built(graph, batch, settings, device)


def decoded(jpegs: Any, dali: Dali, device: torch.device) -> Any:
    from nvidia.dali import fn, types

    gpu = {"device": "mixed", "hw_decoder_load": dali.hw_decoder_load} if device.type == "cuda" else {"device": "cpu"}
    # Fancy upsampling is what libjpeg, and so Pillow and torchvision, does by default; nvJPEG does not.
    return fn.decoders.image(jpegs, output_type=types.RGB, jpeg_fancy_upsampling=True, **gpu)


def resized(images: Any, size: Any, **region: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True, **region)


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
        factor = torch.from_numpy(gain).to(views.device, torch.float32)[..., None, None]
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


def run(pipeline: Any, device: torch.device) -> Tensor:
    """The next batch: uint8 (outputs, N, S, S, 3). Raises RuntimeError where an image cannot be decoded."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    outputs = pipeline.run(stream)
    # The stack copies, so that DALI may reuse its buffers.
    return torch.stack([torch.from_dlpack(output.as_tensor()) for output in outputs])
