"""The kernels of views on GPUs beside the operations; to be run with TRITON_INTERPRET=1, by which they run on a CPU."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from simsiam.data.augment import apply_colour
from simsiam.data.gpu_augment import make_views
from simsiam.data.views import Colour, colours_of_views
from simsiam.settings.tree import Views

EVERYTHING = Views(jitter=0.9, hue=0.5, gray=0.2, solarize=0.3)
REACH = 8


def apart(colour: Colour, side: int, seed: int = 0) -> float:
    """The largest difference of a normalised value, on images of all hues with black, white and pure colours."""
    n = len(colour.gray)
    crops = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)
    corners = [[red, green, blue] for red in (0, 255) for green in (0, 255) for blue in (0, 255)]
    crops[:, 0, :8] = corners[:side]
    mean, std = torch.tensor(EVERYTHING.mean), torch.tensor(EVERYTHING.std)
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    expected = (apply_colour(images, colour, REACH) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    found = make_views(torch.from_numpy(crops), colour, REACH, mean, std)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    return (found - expected).abs().max().item()


def of_several_recipes() -> None:
    recipes = [replace(EVERYTHING, blur=1.0), replace(EVERYTHING, blur=0.1, flip=1.0), replace(EVERYTHING, jitter=0.0)]
    assert apart(colours_of_views(recipes, 0, 3, np.arange(5), 0), 6) < 1e-5  # smaller than a blur reaches
    assert apart(drawn(3, blur=0.0), 2) < 1e-5


def drawn(n: int, **settings: Any) -> Colour:
    return colours_of_views([replace(EVERYTHING, **settings)], 0, 0, np.arange(n), 0)


def of_everything() -> None:
    for side in (24, 33):  # of which one has more pixels than a block, and is odd
        assert apart(drawn(24), side) < 1e-5


def of_each_by_itself() -> None:
    none = {"jitter": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0, "flip": 0.0}
    assert apart(drawn(2, **none), 9) < 1e-6
    for name in none:
        assert apart(drawn(4, **{**none, name: 1.0}), 16) < 1e-5
