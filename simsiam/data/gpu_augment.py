"""The colour work of simsiam/data/augment.py on a GPU in a few passes over a view, where its operations make dozens.

One kernel finds the mean gray that an image's contrast needs, one makes jitter and grayscale and, where there is no
blur, all that follows; what is blurred is passed over once down and once across. The formulas are those of augment.py,
number for number but for rounding. Images lie with their channels side by side, as crops and views do.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from simsiam.data.augment import LUMA
from simsiam.data.to_device import to_device
from simsiam.data.views import BRIGHTNESS, CONTRAST, SATURATION, Colour

_PIXELS = 1024  # of a block
_BRIGHTNESS, _CONTRAST, _SATURATION = (tl.constexpr(number) for number in (BRIGHTNESS, CONTRAST, SATURATION))
_OF_RED, _OF_GREEN, _OF_BLUE = (tl.constexpr(part) for part in LUMA)
# The columns of what is told of an image: four operations in their order and their amounts, where contrast comes, and:
_AMOUNT, _CONTRAST_AT, _GRAY, _SIGMA, _SOLARIZE, _FLIP, _SLOT, _TOLD = (
    tl.constexpr(n) for n in (4, 8, 9, 10, 11, 12, 13, 14)
)


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luma(red, green, blue):
    return red * _OF_RED + green * _OF_GREEN + blue * _OF_BLUE


@triton.jit
def _hue_shifted(red, green, blue, turns):
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    hue = tl.where(green == value, (blue - red) + 2 * chroma, (red - green) + 4 * chroma)
    hue = tl.where(red == value, green - blue, hue) / tl.maximum(chroma, 1e-12) + 6 * turns
    hue -= 6 * tl.floor(hue / 6)
    red = value - _clamped(2 - tl.abs(hue - 3)) * chroma
    green = value - _clamped(tl.abs(hue - 2) - 1) * chroma
    blue = value - _clamped(tl.abs(hue - 4) - 1) * chroma
    return red, green, blue


@triton.jit
def _jittered(red, green, blue, operation, amount, mean):
    if operation >= 0:
        if operation == _BRIGHTNESS:
            red, green, blue = _clamped(red * amount), _clamped(green * amount), _clamped(blue * amount)
        elif operation == _CONTRAST:
            red = _clamped(mean + amount * (red - mean))
            green = _clamped(mean + amount * (green - mean))
            blue = _clamped(mean + amount * (blue - mean))
        elif operation == _SATURATION:
            gray = _luma(red, green, blue)
            red = _clamped(gray + amount * (red - gray))
            green = _clamped(gray + amount * (green - gray))
            blue = _clamped(gray + amount * (blue - gray))
        else:
            red, green, blue = _hue_shifted(red, green, blue, amount)
    return red, green, blue


@triton.jit
def _pixels(crops, at, inside):
    red = tl.load(crops + at, mask=inside, other=0).to(tl.float32) / 255
    green = tl.load(crops + at + 1, mask=inside, other=0).to(tl.float32) / 255
    blue = tl.load(crops + at + 2, mask=inside, other=0).to(tl.float32) / 255
    return red, green, blue


@triton.jit
def _store(out, at, red, green, blue, inside):
    tl.store(out + at, red, mask=inside)
    tl.store(out + at + 1, green, mask=inside)
    tl.store(out + at + 2, blue, mask=inside)


@triton.jit(do_not_specialize=["pixels"])
def _mean_gray(means, crops, told, pixels, PIXELS: tl.constexpr):
    """Of each image, after what comes before its contrast."""
    image = tl.program_id(0)
    of = told + image * _TOLD
    place = tl.load(of + _CONTRAST_AT)
    total = 0.0
    if place >= 0:
        for first in range(0, pixels, PIXELS):
            pixel = first + tl.arange(0, PIXELS)
            inside = pixel < pixels
            red, green, blue = _pixels(crops, image.to(tl.int64) * pixels * 3 + pixel * 3, inside)
            for number in tl.static_range(3):
                if number < place:
                    red, green, blue = _jittered(
                        red, green, blue, tl.load(of + number).to(tl.int32), tl.load(of + _AMOUNT + number), 0.0
                    )
            total += tl.sum(tl.where(inside, _luma(red, green, blue), 0.0))
    tl.store(means + image, total / pixels)


@triton.jit
def _finished(out, red, green, blue, of, image, pixel, inside, side, mean, std):
    """Solarized, flipped, normalised, and written to view `image`."""
    if tl.load(of + _SOLARIZE) > 0:
        red, green, blue = tl.minimum(red, 1 - red), tl.minimum(green, 1 - green), tl.minimum(blue, 1 - blue)
    column = pixel % side
    if tl.load(of + _FLIP) > 0:
        column = side - 1 - column
    red = (red - tl.load(mean)) / tl.load(std)
    green = (green - tl.load(mean + 1)) / tl.load(std + 1)
    blue = (blue - tl.load(mean + 2)) / tl.load(std + 2)
    at = image.to(tl.int64) * side * side * 3 + (pixel // side * side + column) * 3
    _store(out, at, red, green, blue, inside)


@triton.jit(do_not_specialize=["side"])
def _coloured(out, sharp, crops, told, means, side, mean, std, PIXELS: tl.constexpr):
    """Jitter and grayscale; then the rest, or where a blur follows into a slot of `sharp`."""
    image = tl.program_id(0)
    pixels = side * side
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    of = told + image * _TOLD
    red, green, blue = _pixels(crops, image.to(tl.int64) * pixels * 3 + pixel * 3, inside)
    gray_of_all = tl.load(means + image)
    for number in tl.static_range(4):
        red, green, blue = _jittered(
            red, green, blue, tl.load(of + number).to(tl.int32), tl.load(of + _AMOUNT + number), gray_of_all
        )
    if tl.load(of + _GRAY) > 0:
        gray = _luma(red, green, blue)
        red, green, blue = gray, gray, gray
    slot = tl.load(of + _SLOT).to(tl.int32)
    if slot >= 0:
        _store(sharp, slot.to(tl.int64) * pixels * 3 + pixel * 3, red, green, blue, inside)
    else:
        _finished(out, red, green, blue, of, image, pixel, inside, side, mean, std)


@triton.jit(do_not_specialize=["side", "reach"])
def _blurred(
    out, sharp, told, blurred, side, mean, std, reach, ACROSS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """A Gaussian down the columns of `sharp` into `out`; or across its rows, and what follows, into the views `out`."""
    slot = tl.program_id(0)
    image = tl.load(blurred + slot)
    of = told + image * _TOLD
    sigma = tl.load(of + _SIGMA)
    pixels = side * side
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    row, column = pixel // side, pixel % side
    start = sharp + slot.to(tl.int64) * pixels * 3
    red = tl.zeros((PIXELS,), tl.float32)
    green, blue = red, red
    total = 0.0
    for offset in range(-reach, reach + 1):
        weight = tl.exp(-0.5 * (offset / sigma) * (offset / sigma))
        total += weight
        if ACROSS:
            at = row * side + tl.minimum(tl.maximum(column + offset, 0), side - 1)
        else:
            at = tl.minimum(tl.maximum(row + offset, 0), side - 1) * side + column
        red += weight * tl.load(start + at * 3, mask=inside, other=0)
        green += weight * tl.load(start + at * 3 + 1, mask=inside, other=0)
        blue += weight * tl.load(start + at * 3 + 2, mask=inside, other=0)
    red, green, blue = red / total, green / total, blue / total
    if ACROSS:
        _finished(out, red, green, blue, of, image, pixel, inside, side, mean, std)
    else:
        _store(out, slot.to(tl.int64) * pixels * 3 + pixel * 3, red, green, blue, inside)


def make_views(crops: Tensor, colour: Colour, reach: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 crops (N, S, S, 3) on a GPU -> normalised views (N, 3, S, S) in float32, channels_last.

    Args:
        colour: what to do with each.
        reach: pixels on either side that a blur looks at.
        mean, std: what normalisation subtracts and divides by, three numbers each.
    """
    n, side = crops.shape[:2]
    device = crops.device
    blurred = np.flatnonzero(colour.sigma > 0)
    told, images = to_device(_told(colour, blurred), device), to_device(blurred, device)
    crops, mean, std = crops.contiguous(), mean.flatten(), std.flatten()
    out = torch.empty((n, 3, side, side), device=device, memory_format=torch.channels_last)
    # Room for an eighth of all more or less, and not for each number of them: the allocator can give the same again.
    slots = -(-len(blurred) // max(1, n // 8)) * max(1, n // 8)
    sharp, half = (torch.empty((slots, side, side, 3), device=device) for _ in range(2))
    means = torch.empty(n, device=device)
    blocks = triton.cdiv(side * side, _PIXELS)
    _mean_gray[(n,)](means, crops, told, side * side, _PIXELS)
    _coloured[(n, blocks)](out, sharp, crops, told, means, side, mean, std, _PIXELS)
    if len(blurred):
        grid = (len(blurred), blocks)
        _blurred[grid](half, sharp, told, images, side, mean, std, reach, False, _PIXELS)
        _blurred[grid](out, half, told, images, side, mean, std, reach, True, _PIXELS)
    return out


def try_out() -> None:
    """Makes each kernel and runs it on the GPU; raises what Triton raises where it cannot make one."""
    crops, three = torch.zeros((1, 8, 8, 3), dtype=torch.uint8, device="cuda"), torch.ones(3, device="cuda")
    no, one = np.zeros(1, bool), np.ones(1)
    make_views(crops, Colour(no, np.arange(4)[None], one, one, one, one, no, one, no, no), 8, three, three)
    torch.cuda.synchronize()  # or what fails on the GPU would be told by a later line


def _told(colour: Colour, blurred: np.ndarray) -> np.ndarray:
    """What the kernels are told of each image: float32 (N, columns as above)."""
    n = len(colour.gray)
    amounts = np.stack([getattr(colour, name) for name in ("brightness", "contrast", "saturation", "hue")], 1)
    told = np.full((n, _TOLD.value), -1.0, np.float32)
    told[:, : _AMOUNT.value] = np.where(colour.jitter[:, None], colour.order, -1)
    told[:, _AMOUNT.value : _CONTRAST_AT.value] = np.take_along_axis(amounts, colour.order, 1)
    told[:, _CONTRAST_AT.value] = np.where(colour.jitter, (colour.order == CONTRAST).argmax(1), -1)
    flags = (_GRAY, colour.gray), (_SIGMA, colour.sigma), (_SOLARIZE, colour.solarize), (_FLIP, colour.flip)
    for column, values in flags:
        told[:, column.value] = values
    told[blurred, _SLOT.value] = np.arange(len(blurred))
    return told
