"""uint8 crops -> normalised float views: jitter, gray, blur, solarize, flip as one batched op on the training device.

On a GPU simsiam/data/gpu_augment.py does the same in a few passes, where Triton makes kernels; here is what it does.

Definitions are torchvision's on float images (ColorJitter in random order, HSV hue, contrast around the image's own
mean gray, clamping after each operation, solarization from 0.5 up). The blur is a true Gaussian, cut at 4 standard
deviations of the widest among the views, with the edge pixel repeated; PIL's GaussianBlur in the official recipe is
three box filters that approximate it (mean difference about half a level of 255; tests/data/test_augment.py holds the
bound).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.data.crops import Crops
from simsiam.data.to_device import to_device
from simsiam.data.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Colour, colours_of_views
from simsiam.distributed.threads import one_thread
from simsiam.gpu_kernels import gpu_kernels
from simsiam.settings.tree import Views

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's convert("L")
_CACHE_VALUES = 1 << 18
"""Numbers that a CPU works on at a time: one megabyte stays in its cache from one operation to the next. On two cores
and at 224 pixels this makes the whole twice as fast as one pass of each operation over the batch."""


class Augment(nn.Module):
    """From crops to views.

    Args:
        views: the recipe of every view; seed: the run's seed.
        recipes: epoch -> recipe of each view, where they differ; mean and std are those of `views` all the same.
    """

    def __init__(self, views: Views, seed: int, recipes: Callable[[int], list[Views]] | None = None) -> None:
        super().__init__()
        self.views, self.seed, self._recipes = views, seed, recipes
        self.register_buffer("mean", torch.tensor(views.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(views.std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, crops: Tensor, samples: np.ndarray, epoch: int, first: int = 0) -> Tensor:
        """Views of one batch.

        Args:
            crops: uint8 (V, N, S, S, 3), crop v of image n.
            samples: int64 (N,), sample ids.
            epoch: from 0.
            first: number of the first of these views among all of an image.

        Returns:
            float32 (V, N, 3, S, S), normalised, channels_last within each view.
        """
        num_views, n, side = crops.shape[:3]
        recipes = self._recipes(epoch)[first : first + num_views] if self._recipes else [self.views] * num_views
        colour = colours_of_views(recipes, self.seed, epoch, samples, first)
        reach = math.ceil(4 * max(recipe.blur_sigma[1] for recipe in recipes))
        crops = crops.to(self.mean.device).reshape(-1, side, side, 3)
        if crops.is_cuda and (make_views := _gpu_views()) is not None:
            return make_views(crops, colour, reach, self.mean, self.std).view(num_views, n, 3, side, side)
        crops = crops.permute(0, 3, 1, 2)
        out = torch.empty(crops.shape, device=crops.device, memory_format=torch.channels_last)
        at_once = len(crops) if crops.is_cuda else max(1, _CACHE_VALUES // (3 * side * side))
        # On more threads than one, each operation waits at its end for cores that the loader's workers have: with two
        # workers on two cores, views come twice as fast by one.
        with nullcontext() if crops.is_cuda else one_thread():
            for start in range(0, len(crops), at_once):
                part = slice(start, start + at_once)
                images = crops[part].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
                images = apply_colour(images, Colour(*(values[part] for values in vars(colour).values())), reach)
                torch.div(images.sub_(self.mean), self.std, out=out[part])
        return out.view(num_views, n, 3, side, side)

    def inputs(self, crops: Crops) -> tuple[Tensor, ...]:
        """What a method is called with: views (V, N, 3, S, S), and small views (W, N, 3, s, s) where there are any."""
        views = self(crops.images, crops.samples, crops.epoch)
        if crops.small is None:
            return (views,)
        return views, self(crops.small, crops.samples, crops.epoch, first=len(views))

    def centred(self, crops: Tensor) -> Tensor:
        """Centre crops uint8 (N, S, S, 3) -> float32 (N, 3, S, S) on the device, normalised, channels_last."""
        pixels = crops.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return self.normalise(pixels)

    def normalise(self, images: Tensor) -> Tensor:
        """float (N, 3, H, W) in 0..1 -> normalised, channels_last."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def _gpu_views() -> Callable[..., Tensor] | None:
    kernels = gpu_kernels("simsiam.data.gpu_augment")
    return kernels and kernels.make_views


def apply_colour(images: Tensor, colour: Colour, reach: int) -> Tensor:
    """Jitter, gray, blur, solarize and flip of N images, in that order.

    Args:
        images: float (N, 3, H, W) in 0..1, overwritten; the result may be another tensor.
        colour: what to do with each.
        reach: pixels on either side that a blur looks at.
    """
    device = images.device
    plans: list[tuple[np.ndarray, Callable[..., Tensor], np.ndarray | None]] = []
    operations = {
        BRIGHTNESS: (adjust_brightness, colour.brightness),
        CONTRAST: (adjust_contrast, colour.contrast),
        SATURATION: (adjust_saturation, colour.saturation),
        HUE: (adjust_hue, colour.hue),
    }
    for position in range(4):
        for number, (operation, amount) in operations.items():
            plans.append((colour.jitter & (colour.order[:, position] == number), operation, amount))
    plans.append((colour.gray, grayscale, None))
    plans.append((colour.sigma > 0, partial(gaussian_blur, reach=reach), colour.sigma))
    plans.append((colour.solarize, solarize, None))
    plans.append((colour.flip, lambda x: x.flip(-1), None))

    # The subsets are known on the host, so nothing waits for the device, and an operation costs its share of images.
    for mask, operation, amount in plans:
        chosen = np.flatnonzero(mask)
        if not len(chosen):
            continue
        arguments = () if amount is None else (to_device(amount[chosen], device).to(images.dtype),)
        if len(chosen) == len(images):
            images = operation(images, *arguments)
            continue
        index = to_device(chosen, device)
        images.index_copy_(0, index, operation(images.index_select(0, index), *arguments))
    return images


def _per_image(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Images (N, 3, H, W) in 0..1 times factor (N,), clamped."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Images (N, 3, H, W) blended by factor (N,) with their own mean gray, clamped."""
    mean = _luma(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Images (N, 3, H, W) blended by factor (N,) with their grayscale, clamped."""
    return torch.lerp(_luma(images), images, _per_image(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Images (N, 3, H, W) with their HSV hue shifted by shift (N,) turns; value and saturation stay.

    Written without `where` and `remainder`, which torch does not vectorise on a CPU: a third of the time.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    is_red, is_green = ((channel - value).sign_().add_(1) for channel in (red, green))
    # Smith's HSV hexcone (1978); lerp gives an end exactly at weight 0 or 1, so it chooses.
    hue = torch.lerp((red - green).add_(chroma, alpha=4), (blue - red).add_(chroma, alpha=2), is_green)
    hue = torch.lerp(hue, green - blue, is_red)
    hue.div_(chroma.clamp_min(1e-12)).add_(6 * shift.view(-1, 1, 1))  # in sixths of a turn
    hue.sub_((hue / 6).floor_(), alpha=6)
    # A channel lies below the value by chroma x the hue's distance from where it is largest, cut to 0..1.
    below_red = (hue - 3).abs_().neg_().add_(2)
    below_green, below_blue = ((hue - centre).abs_().sub_(1) for centre in (2, 4))
    return torch.stack([value - below.clamp_(0, 1).mul_(chroma) for below in (below_red, below_green, below_blue)], 1)


def grayscale(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) as luma in all three channels."""
    return _luma(images).repeat(1, 3, 1, 1)


def solarize(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in 0..1 with each value from 0.5 up inverted, which makes it the smaller of x and 1 - x."""
    return torch.minimum(images, 1 - images)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Images (N, 3, H, W) convolved with a Gaussian of sigma (N,) > 0 pixels, the edge pixel repeated.

    Args:
        reach: pixels on either side that an output pixel looks at.
    """
    block = 2 * reach
    offset = torch.arange(-reach, reach + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.view(-1, 1)) ** 2)
    weight /= weight.sum(1, keepdim=True)
    # Column i of the band weighs the 2 block pixels around a block for its pixel i. Each image has its own width of
    # blur, which costs a batched matrix product nothing.
    band = sigma.new_zeros(len(sigma), 2 * block, block)
    source = torch.arange(block, device=sigma.device) + torch.arange(2 * reach + 1, device=sigma.device).view(-1, 1)
    band.scatter_(1, source.expand(len(sigma), -1, -1), weight.unsqueeze(2).expand(-1, -1, block))
    return _blur_across(_blur_down(images, band), band)


def _blur_down(images: Tensor, band: Tensor) -> Tensor:
    """Each column of images (N, C, H, W) by the band (N, 2 block, block)."""
    n, channels, height, width = images.shape
    block = band.shape[2]
    padded = F.pad(images, (0, 0, block // 2, block // 2 + -height % block), mode="replicate")
    blocks = padded.unfold(2, 2 * block, block).mT  # (N, C, H / block, 2 block, W)
    return (band.mT.view(n, 1, 1, block, -1) @ blocks).view(n, channels, -1, width)[:, :, :height]


def _blur_across(images: Tensor, band: Tensor) -> Tensor:
    """Each row of images (N, C, H, W) by the band (N, 2 block, block)."""
    n, channels, height, width = images.shape
    block = band.shape[2]
    padded = F.pad(images, (block // 2, block // 2 + -width % block, 0, 0), mode="replicate")
    blocks = padded.unfold(3, 2 * block, block).reshape(n, -1, 2 * block)
    return (blocks @ band).view(n, channels, height, -1)[..., :width]
