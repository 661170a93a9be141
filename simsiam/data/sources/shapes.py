"""`shapes`: ten classes of generated JPEG images, for a first run without any download.

What varies inside a class is what the views vary (crop, cast, light, contrast, gray, flip, noise), so an encoder that
learns to ignore those has learned the class. With backgrounds or colours free inside a class, a small network finds
what identifies the image instead, and SimSiam's features get no better than random ones.
"""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from simsiam.data.cache import cache_root
from simsiam.data.whole_folder import whole_folder

CLASSES = tuple(f"shape{label}" for label in range(10))
_VERSION = "shapes-v3"  # the cache folder: raise it whenever a byte of any image changes
_WAVES = 8  # plane waves that a pattern is made of
_MIN_CYCLES, _MAX_CYCLES = 0.6, 2.5  # their spatial frequency, cycles across the pattern
_CONTRAST = 0.25  # standard deviation of each channel of a pattern
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def class_pattern(label: int, size: int) -> np.ndarray:
    """The whole pattern of a class, unvaried: float64 (size, size, 3) in [0, 1], RGB."""
    centres = (np.arange(size) + 0.5) / size
    return _pattern_at(label, centres, centres)


def draw(
    label: int, size: int, rng: np.random.Generator, *, smallest: float = 0.6, flip: float = 0.5, gray: float = 0.2
) -> np.ndarray:
    """One image of a class, a strong variant of its pattern: uint8 (size, size, 3) RGB.

    `smallest` is the least side of the window that it shows, as a part of the pattern's; `flip` and `gray` are
    probabilities of a mirror image and of one without colour.
    """
    side = rng.uniform(smallest, 1)
    top, left = rng.uniform(0, 1 - side, 2)
    centres = (np.arange(size) + 0.5) / size * side
    image = _pattern_at(label, top + centres, left + centres)
    if rng.random() < flip:
        image = image[:, ::-1]
    image = image * rng.uniform(0.9, 1.1, 3) * rng.uniform(0.6, 1.4)  # cast and light
    mean = (image @ _TO_YIQ[0]).mean()
    image = mean + (image - mean) * rng.uniform(0.6, 1.4)  # contrast
    saturation, turn = rng.uniform(0.5, 1.5), 2 * np.pi * rng.uniform(-0.1, 0.1)
    if rng.random() < gray:
        saturation = 0
    cos, sin = saturation * np.cos(turn), saturation * np.sin(turn)
    image = image @ (_FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ).T
    image = image + rng.normal(scale=rng.uniform(0.01, 0.05), size=image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def make_shapes(root: Path, train: int = 5000, val: int = 1000, size: int = 32, seed: int = 0) -> None:
    """Write the dataset as JPEG files, ROOT/train/CLASS/NUMBER.jpg and ROOT/val/CLASS/NUMBER.jpg.

    The folder appears whole or not at all: it is written beside itself and renamed, so processes that make the same one
    at once all succeed. The same arguments give the same bytes for the same version of this package, numpy and PIL.

    Args:
        root: the folder to make; left as it is where it holds a train and a val folder already.
        train, val: images in each split, the classes in turn.
        size: height and width, pixels.
        seed: another one draws other images of the same classes.

    Raises:
        UserError: the folder cannot be written, or is there with something else in it.
    """
    root = Path(root)
    made = partial(_is_made, root)
    with whole_folder(root, made, what="the dataset shapes", remedy="set SIMSIAM_CACHE") as draft:
        if draft is not None:
            for stream, (split, count) in enumerate((("train", train), ("val", val))):
                _write_split(draft / split, count, size, (seed << 8) + stream)


def shapes_root() -> Path:
    """The dataset's folder in the cache, made in seconds if it is missing."""
    root = cache_root() / _VERSION
    make_shapes(root)
    return root


def _is_made(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "val").is_dir()


def _write_split(folder: Path, count: int, size: int, stream: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        label = number % len(CLASSES)
        rng = np.random.Generator(np.random.Philox(key=[stream, number]))
        image = Image.fromarray(draw(label, size, rng))
        image.save(folder / CLASSES[label] / f"{number:05d}.jpg", quality=90)


def _pattern_at(label: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The pattern of a class at given coordinates in [0, 1]: float64 (len(rows), len(columns), 3) in [0, 1]."""
    mean, recolour = _colours(label)
    return np.clip(0.5 + (_waves_at(label, rows, columns) - mean) @ recolour, 0, 1)


@lru_cache(maxsize=len(CLASSES))
def _colours(label: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and the map (3, 3) that give every pattern one mean and one covariance of colour.

    With colour statistics of its own a class would be known from them, and a random encoder would tell it already.
    """
    centres = (np.arange(64) + 0.5) / 64
    pixels = _waves_at(label, centres, centres).reshape(-1, 3)
    values, vectors = np.linalg.eigh(np.cov(pixels.T))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    shared = _CONTRAST * np.linalg.cholesky(0.5 + 0.5 * np.eye(3))  # channels correlated by 1/2
    return pixels.mean(axis=0), whiten @ shared.T


@lru_cache(maxsize=len(CLASSES))
def _waves(label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Wave vectors along rows and columns, radians across the pattern (W,), phases (W,) and RGB amplitudes (W, 3)."""
    rng = np.random.Generator(np.random.Philox(key=[0x5AA9E5, label]))
    angles = rng.uniform(0, np.pi, _WAVES)
    radians = 2 * np.pi * rng.uniform(_MIN_CYCLES, _MAX_CYCLES, _WAVES)
    phases = rng.uniform(0, 2 * np.pi, _WAVES)
    amplitudes = rng.normal(size=(_WAVES, 3)) + 0.7 * rng.normal(size=(_WAVES, 1))
    return radians * np.sin(angles), radians * np.cos(angles), phases, amplitudes / np.sqrt(_WAVES / 2)


def _waves_at(label: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The sum of a class's waves, softly clipped to -1..1: float64 (len(rows), len(columns), 3)."""
    along_rows, along_columns, phases, amplitudes = _waves(label)
    down = np.outer(rows, along_rows) + phases
    across = np.outer(columns, along_columns)
    # sin(a + b) = sin a cos b + cos a sin b: sines of lines instead of pixels, ten times faster.
    left = np.concatenate([np.sin(down), np.cos(down)], axis=1)
    right = np.concatenate([np.cos(across), np.sin(across)], axis=1)
    weighted = left[:, None] * np.concatenate([amplitudes, amplitudes]).T  # (rows, 3, 2W)
    return np.tanh(1.2 * (weighted @ right.T)).transpose(0, 2, 1)
