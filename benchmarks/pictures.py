"""Photographs that nobody took, for where there are none: noise of all scales, saved as JPEG."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import encode_jpeg

_DRAWN = 64  # a file more is one of them again: drawing takes longer than decoding


def write_pictures(folder: Path, number: int, height: int, width: int) -> Path:
    """A folder of FOLDER/train/CLASS/*.jpg, the same pictures for the same numbers."""
    generator = torch.Generator().manual_seed(0)
    place = folder / "train/noise"
    place.mkdir(parents=True)
    drawn = [encode_jpeg(picture(height, width, generator), quality=90) for _ in range(min(number, _DRAWN))]
    for index in range(number):
        (place / f"{index:05}.jpg").write_bytes(drawn[index % len(drawn)].numpy())
    return folder


def picture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """uint8 (3, height, width) whose finer structure is fainter, as that of photographs is."""
    total = torch.zeros(1, 3, height, width)
    for scale in (2, 4, 8, 16, 32, 64):
        if scale > min(height, width):
            break
        noise = torch.randn(1, 3, scale, scale * width // height, generator=generator)
        total += F.interpolate(noise, size=(height, width), mode="bilinear") / scale**0.5
    total += torch.randn(total.shape, generator=generator) / 32
    return (128 + 48 * total[0]).clamp(0, 255).to(torch.uint8)
