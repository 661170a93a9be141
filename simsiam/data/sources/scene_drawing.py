"""A picture of objects on clutter, with their masks: an object is a class's pattern cut to a random outline.

The outline says nothing of the class, so what tells one is what tells an image of `shapes`: the pattern, which an
encoder learns from those without labels. The clutter has the patterns' mean and a third of their contrast: where an
object is can be learned in minutes.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from simsiam.data.sources.shapes import CLASSES, draw

_LONG_SIDE, _SHORT_SIDE = (128, 160), (96, 128)  # of a scene, pixels: from, to
_MOST_OBJECTS = 3
_OBJECT_SIDE = (0.42, 0.66)  # its longer, of the scene's shorter side: from, to
_ASPECT = (0.7, 1.0)  # its shorter side, of its longer: a thin strip shows too little of the pattern
_VARIANTS = {"smallest": 0.85, "flip": 0.0, "gray": 0.0}  # milder than those of `shapes`: the outline hides a part
_HIDDEN_BELOW = 0.3  # visible part under which an object is hard to tell
_PLACES = 2  # tried for each object, for less overlap
_CONTRAST = 0.07  # standard deviation of the clutter's ground; rectangles, stripes and lines add to it


class SceneObject(NamedTuple):
    """What is visible of an object.

    Attributes:
        label: class number from 0.
        mask: bool (H, W).
        box: x1, y1, x2, y2 in pixels, tight around the mask: x2 and y2 are one past the last.
        hidden: less than 30% of it is visible.
    """

    label: int
    mask: np.ndarray
    box: tuple[int, int, int, int]
    hidden: bool


class Scene(NamedTuple):
    """Pixels, uint8 (H, W, 3) RGB, and the objects, those in front last."""

    pixels: np.ndarray
    objects: list[SceneObject]


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene: 96 to 160 pixels a side, one to three objects; an object that is hidden whole is none."""
    height, width = int(rng.integers(*_SHORT_SIDE, endpoint=True)), int(rng.integers(*_LONG_SIDE, endpoint=True))
    if rng.random() < 0.5:
        height, width = width, height
    pixels = _clutter(height, width, rng)
    drawn: list[tuple[int, np.ndarray]] = []
    covered = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(1, _MOST_OBJECTS, endpoint=True))):
        label = int(rng.integers(len(CLASSES)))
        rows, columns = _sides(min(height, width), rng)
        cut = _outline(rows, columns, rng)
        places = [
            (int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))) for _ in range(_PLACES)
        ]
        top, left = min(places, key=lambda place: _overlap(covered, cut, *place))
        pattern = draw(label, max(rows, columns), rng, **_VARIANTS)[:rows, :columns]
        pixels[top : top + rows, left : left + columns][cut] = pattern[cut]
        mask = np.zeros((height, width), bool)
        mask[top : top + rows, left : left + columns] = cut
        covered |= mask
        drawn.append((label, mask))
    return Scene(pixels, _visible(drawn))


def _visible(drawn: list[tuple[int, np.ndarray]]) -> list[SceneObject]:
    """What each object shows behind those drawn after it."""
    objects = []
    for place, (label, mask) in enumerate(drawn):
        shown = mask & ~np.any([later for _, later in drawn[place + 1 :]], axis=0) if drawn[place + 1 :] else mask
        if shown.any():
            rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
            objects.append(SceneObject(label, shown, box, bool(shown.sum() < _HIDDEN_BELOW * mask.sum())))
    return objects


def _sides(shorter: int, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of an object in a scene with this shorter side."""
    longest = shorter * rng.uniform(*_OBJECT_SIDE)
    sides = int(longest), int(longest * rng.uniform(*_ASPECT))
    return sides if rng.random() < 0.5 else sides[::-1]


def _overlap(covered: np.ndarray, cut: np.ndarray, top: int, left: int) -> int:
    """Pixels of an object at a place that other objects have."""
    rows, columns = cut.shape
    return int((covered[top : top + rows, left : left + columns] & cut).sum())


def _outline(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A random shape that fills most of a rectangle, turned at random: bool (rows, columns)."""
    kind, corners = rng.integers(4), 60
    if kind == 0:  # ellipse
        radii = np.ones(corners)
    elif kind == 1:  # rectangle
        return np.ones((rows, columns), bool)
    elif kind == 2:  # star
        radii = np.tile([1, rng.uniform(0.6, 0.8)], int(rng.integers(5, 8)))
    else:  # blob
        around = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        waves = np.sin(np.outer(around, [2, 3, 5]) + rng.uniform(0, 2 * np.pi, 3))
        radii = 1 + 0.35 * waves @ rng.dirichlet(np.ones(3))
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False) + rng.uniform(0, 2 * np.pi)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * [columns - 1, rows - 1]
    image = Image.new("1", (columns, rows))
    ImageDraw.Draw(image).polygon([tuple(point) for point in points.tolist()], fill=1, outline=1)
    return np.asarray(image)


def _clutter(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A background: clouds, stripes, rectangles, lines and grain, uint8 (height, width, 3)."""
    ground = _clouds(height, width, rng) + _stripes(height, width, rng)
    image = Image.fromarray(_to_bytes(ground))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        left, top = rng.uniform(-0.1, 1, 2) * (width, height)
        across, down = rng.uniform(0.05, 0.4, 2) * min(width, height)
        pen.rectangle((left, top, left + across, top + down), fill=_colour(rng))
    for _ in range(int(rng.integers(2, 7))):
        ends = (rng.uniform(-0.1, 1.1, 4) * (width, height, width, height)).tolist()
        pen.line(ends, fill=_colour(rng), width=int(rng.integers(1, 5)))
    grain = rng.normal(scale=rng.uniform(0.01, 0.05), size=(height, width, 3))
    return _to_bytes(np.asarray(image) / 255 + grain)


def _clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Coarse noise around mid-gray, smoothed: float (height, width, 3)."""
    cells = int(rng.integers(3, 9))
    noise = rng.normal(scale=_CONTRAST, size=(cells, cells, 3)) + rng.normal(scale=_CONTRAST, size=(cells, cells, 1))
    coarse = Image.fromarray(_to_bytes(0.5 + noise))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255


def _stripes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Even stripes of one direction, or none: float (height, width, 3) around 0. A pattern has eight, of any colour."""
    if rng.random() < 0.4:
        return np.zeros((height, width, 3))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 30)  # pixels
    along = np.arange(width) * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)
    wave = np.sin(2 * np.pi * along / period + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return wave[..., None] * rng.normal(scale=0.04, size=3)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = _to_bytes(0.5 + rng.normal(scale=0.09, size=3) + rng.normal(scale=0.08)).tolist()
    return red, green, blue


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
