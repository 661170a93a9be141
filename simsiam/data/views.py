"""What a view of a sample is: crop, jitter, gray, blur, solarize, flip; a pure function of (seed, epoch, sample, view).

Views are numbered through: those of full size from 0, small ones behind them. What a choice draws depends on its own
setting alone, so a recipe that adds one leaves the others as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from simsiam.data.counter import bits, uniform
from simsiam.settings.tree import Views

_VIEW = 0x71E3  # names the stream of hashes that views are drawn from
_ATTEMPTS = 10  # as torchvision.transforms.RandomResizedCrop

# One number for each random choice of a view. Crop attempts take _ATTEMPTS numbers each from their own range.
_JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA, _FLIP, _SOLARIZE = range(11)
_AREA, _RATIO, _TOP, _LEFT = 100, 200, 300, 400

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Colour:
    """How N crops are turned into views; everything but the crop box. Arrays of length N.

    Attributes:
        jitter: bool, whether the four jitter operations apply at all.
        order: int64 (N, 4), the operations in the order they apply (BRIGHTNESS, CONTRAST, SATURATION, HUE).
        brightness, contrast, saturation: float64 factors, 1 leaves the image as it is.
        hue: float64 shift in turns. gray, solarize, flip: bool.
        sigma: float64 standard deviation of the blur in pixels, 0 for none.
    """

    jitter: np.ndarray
    order: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    gray: np.ndarray
    sigma: np.ndarray
    solarize: np.ndarray
    flip: np.ndarray


def crop_boxes(
    views: Views,
    seed: int,
    epoch: int,
    samples: np.ndarray,
    view: int | np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
) -> np.ndarray:
    """Crop boxes with the distribution of torchvision's RandomResizedCrop.

    Args:
        samples: sample ids, int64 (N,).
        view: number of the view, from 0, of all samples or of each, (N,).
        heights, widths: sizes of the images in pixels, (N,).

    Returns:
        int64 (N, 4): top, left, height, width, inside the image.
    """
    samples, heights, widths = (np.asarray(a, np.int64) for a in (samples, heights, widths))
    attempt, view = np.arange(_ATTEMPTS)[None, :], np.asarray(view)[..., None]

    def draw(what: int) -> np.ndarray:
        return uniform(seed, _VIEW, epoch, samples[:, None], view, what + attempt)

    area = (heights * widths)[:, None] * _between(views.scale, draw(_AREA))
    ratio = np.exp(_between(np.log(views.ratio), draw(_RATIO)))
    w, h = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    first = np.argmax(fits, axis=1)
    rows = np.arange(len(samples))
    h, w, found = h[rows, first], w[rows, first], fits[rows, first]

    # No attempt fits: the largest central crop within the allowed ratios.
    low, high = views.ratio
    shape = widths / heights
    h_centre = np.where(shape < low, np.rint(widths / low), heights).astype(np.int64)
    w_centre = np.where(shape > high, np.rint(heights * high), widths).astype(np.int64)
    h, w = np.where(found, h, np.maximum(h_centre, 1)), np.where(found, w, np.maximum(w_centre, 1))
    top = np.where(found, (draw(_TOP)[rows, first] * (heights - h + 1)).astype(np.int64), (heights - h) // 2)
    left = np.where(found, (draw(_LEFT)[rows, first] * (widths - w + 1)).astype(np.int64), (widths - w) // 2)
    return np.stack([top, left, h, w], axis=1)


def colours(views: Views, seed: int, epoch: int, samples: np.ndarray, view: int | np.ndarray) -> Colour:
    """Everything but the crop of view number `view`, one for all or (N,), of each sample, for sample ids int64 (N,)."""
    samples, view = np.asarray(samples, np.int64), np.asarray(view)

    def draw(what: int) -> np.ndarray:
        return uniform(seed, _VIEW, epoch, samples, view, what)

    def factor(strength: float, what: int) -> np.ndarray:
        return _between((max(0.0, 1 - strength), 1 + strength), draw(what))

    order_keys = bits(seed, _VIEW, epoch, samples[:, None], view[..., None], _ORDER, np.arange(4)[None, :])
    return Colour(
        jitter=draw(_JITTER) < views.jitter,
        order=np.argsort(order_keys, axis=1, kind="stable"),
        brightness=factor(views.brightness, _BRIGHTNESS),
        contrast=factor(views.contrast, _CONTRAST),
        saturation=factor(views.saturation, _SATURATION),
        hue=_between((-views.hue, views.hue), draw(_HUE)),
        gray=draw(_GRAY) < views.gray,
        sigma=np.where(draw(_BLUR) < views.blur, _between(views.blur_sigma, draw(_SIGMA)), 0.0),
        solarize=draw(_SOLARIZE) < views.solarize,
        flip=draw(_FLIP) < views.flip,
    )


def boxes_of_views(
    recipes: Sequence[Views], seed: int, epoch: int, samples: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """`crop_boxes` of views 0, 1, ... of each sample, int64 (V, N, 4), for the recipe of each view."""
    samples, heights, widths = (np.asarray(a, np.int64) for a in (samples, heights, widths))
    boxes = []
    for recipe, numbers in _alike(recipes, 0, lambda views: (views.scale, views.ratio)):
        often, view = len(numbers), np.repeat(numbers, len(samples))
        told = (np.tile(values, often) for values in (heights, widths))
        boxes.append(crop_boxes(recipe, seed, epoch, np.tile(samples, often), view, *told).reshape(often, -1, 4))
    return np.concatenate(boxes)


def colours_of_views(recipes: Sequence[Views], seed: int, epoch: int, samples: np.ndarray, first: int = 0) -> Colour:
    """`colours` of views number `first` and up, for the recipe of each; arrays of length V * N, view after view."""
    drawn = [
        colours(recipe, seed, epoch, np.tile(samples, len(numbers)), np.repeat(numbers, len(samples)))
        for recipe, numbers in _alike(recipes, first, lambda views: views)
    ]
    return Colour(*(np.concatenate(parts) for parts in zip(*(vars(c).values() for c in drawn))))


def _alike(recipes: Sequence[Views], first: int, same: Callable[[Views], object]) -> Iterator[tuple[Views, np.ndarray]]:
    """Recipes with the numbers of views in a row that share what counts: drawing for all costs as much as for one."""
    for _, group in groupby(enumerate(recipes, start=first), key=lambda item: same(item[1])):
        numbers, alike = zip(*group)
        yield alike[0], np.array(numbers)


def _between(bounds: tuple[float, float] | np.ndarray, u: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * u
