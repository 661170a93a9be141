"""Images as the protocols test on them, by DALI."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.labelled import Centred, centre_crop, centre_geometry
from simsiam.data.loaders.dali import (
    STAND_IN_SIZE,
    Fetched,
    built,
    decoded,
    edge_gain,
    fetch_one,
    margin,
    mend_edges,
    resized,
    through_pipeline,
)
from simsiam.settings.tree import Run, Views


def dali_centre_batches(
    images: EncodedImages, samples: np.ndarray, views: Views, batch: int, settings: Run, device: torch.device
) -> Iterator[Centred]:
    """As `centre_batches`, with the crops on the device."""
    side = views.size
    refused: set[int] = set()
    chunks = [samples[start : start + batch] for start in range(0, len(samples), batch)]

    def fetch(sample: int) -> Fetched:
        try:
            return fetch_one(images, sample, refused)
        except BadImage as error:
            return Fetched(sample, b"", *STAND_IN_SIZE, failed=(sample, str(error)))

    def arguments(_: int, fetched: list[Fetched]) -> list[np.ndarray]:
        """Extent of the images, size to resize to, corner of the crop, margin: (N, 2) each."""
        extent = np.array([(item.height, item.width) if item.data else STAND_IN_SIZE for item in fetched])
        pairs = [centre_geometry(*size, views.resize, side) for size in extent.tolist()]
        size, corner = (np.array(column) for column in zip(*pairs))
        # A crop that leaves out the outermost pixels needs no frame to have them right.
        touches = (corner == 0) | (corner + side == size)
        return [extent, size, corner, np.where(touches, margin(extent, size), 0)]

    stream = through_pipeline(
        range(len(chunks)),
        samples=chunks.__getitem__,
        fetch=fetch,
        refused=refused,
        arguments=arguments,
        build=partial(_build, batch=batch, side=side, settings=settings, device=device),
        outputs=[(1, side)],
        settings=settings,
        device=device,
    )
    for (crops,), fetched, (extent, size, corner, frame) in stream:
        gain = np.where(frame > 0, edge_gain(extent, size), 1.0)
        mend_edges(crops, np.where(corner == 0, gain, 1.0)[None], np.where(corner + side == size, gain, 1.0)[None])
        for row, item in enumerate(fetched):
            if item.pixels is not None:
                crops[0, row] = centre_crop(item.pixels, views.resize, side).to(device)
        rows = [row for row, item in enumerate(fetched) if item.failed is None]
        kept = [fetched[row].taken for row in rows]
        skipped = tuple(item.failed for item in fetched if item.failed is not None)
        labels = torch.from_numpy(images.labels[kept])
        # To take rows waits for a GPU, and copies.
        readable = crops[0][rows] if skipped else crops[0]
        yield Centred(readable, labels, torch.tensor(kept, dtype=torch.int64), skipped)


def _build(source: object, batch: int, side: int, settings: Run, device: torch.device) -> object:
    """A pipeline from (JPEGs, extent, size to resize to, corner, margin) to uint8 (N, S, S, 3)."""
    from nvidia.dali import fn, types

    def graph() -> tuple:
        kinds = [types.UINT8, *[types.INT32] * 4]
        jpegs, extent, size, corner, frame = fn.external_source(
            source, num_outputs=5, dtype=kinds, ndim=[1] * 5, batch=True
        )
        images = decoded(jpegs, settings.dali, device)
        whole = resized(images, extent, frame, fn.cast(size, dtype=types.FLOAT))
        return (fn.slice(whole, corner, [side, side], axes=[0, 1]),)

    return built(graph, batch, settings, device)
