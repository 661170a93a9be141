"""uint8 crops -> normalised float views: jitter, gray, blur, flip as one batched op on the training device.

Definitions are torchvision's on float images (ColorJitter in random order, HSV hue, contrast around the image's own
mean gray, clamping after each operation). The blur is a true Gaussian, cut at 16 pixels (8 standard deviations of the
recipes' widest), with the edge pixel repeated; PIL's GaussianBlur in the official recipe is three box filters that
approximate it (mean difference about half a level of 255; tests/data/test_augment.py holds the bound).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from simsiam.data.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Colour, colours
from simsiam.settings.tree import Views

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's convert("L")
_REACH = 16  # pixels on either side that a blur looks at


class Augment(nn.Module):
    """From crops to views.

    Args:
        views: the recipe of a view; seed: the run's seed.
    """

    def __init__(self, views: Views, seed: int) -> None:
        super().__init__()
        self.views, self.seed = views, seed
        self.register_buffer("mean", torch.tensor(views.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(views.std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, crops: Tensor, samples: np.ndarray, epoch: int) -> Tensor:
        """Views of one batch.

        Args:
            crops: uint8 (V, N, S, S, 3), crop v of image n.
            samples: int64 (N,), sample ids.
            epoch: from 0.

        Returns:
            float32 (V, N, 3, S, S), normalised, channels_last within each view.
        """
        num_views, n, side = crops.shape[:3]
        drawn = [colours(self.views, self.seed, epoch, samples, view) for view in range(num_views)]
        colour = Colour(*(np.concatenate(parts) for parts in zip(*(vars(c).values() for c in drawn))))
        images = crops.to(self.mean.device).reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        images = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return self.normalise(apply_colour(images, colour)).view(num_views, n, 3, side, side)

    def normalise(self, images: Tensor) -> Tensor:
        """float (N, 3, H, W) in 0..1 -> normalised, channels_last."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def apply_colour(images: Tensor, colour: Colour) -> Tensor:
    """Jitter, gray, blur and flip of N images, in that order.

    Args:
        images: float (N, 3, H, W) in 0..1, overwritten.
        colour: what to do with each.
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
    plans.append((colour.sigma > 0, gaussian_blur, colour.sigma))
    plans.append((colour.flip, lambda x: x.flip(-1), None))

    # The subsets are known on the host, so nothing waits for the device, and an operation costs its share of images.
    for mask, operation, amount in plans:
        chosen = np.flatnonzero(mask)
        if not len(chosen):
            continue
        index = torch.from_numpy(chosen).to(device, non_blocking=True)
        arguments = (
            () if amount is None else (torch.from_numpy(amount[chosen]).to(device, images.dtype, non_blocking=True),)
        )
        images.index_copy_(0, index, operation(images.index_select(0, index), *arguments))
    return images


def _per_image(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


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
    """Images (N, 3, H, W) with their HSV hue shifted by shift (N,) turns; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sextant = sextant + 6 * shift.view(-1, 1, 1)
    # Smith's HSV hexcone in closed form: channel = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + 6 h) mod 6.
    k = (sextant.unsqueeze(1) + sextant.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)).remainder_(6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) as luma in all three channels."""
    return _luma(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (N, 3, H, W) convolved with a Gaussian of sigma (N,) > 0 pixels, the edge pixel repeated.

    Each image has its own width of blur, so the convolution is written as a product with a banded matrix a side:
    two batched matrix products, whatever the widths are.
    """
    height, width = images.shape[-2:]
    rows = _blur_matrix(sigma, height)
    columns = rows if width == height else _blur_matrix(sigma, width)
    return rows @ images @ columns.transpose(-1, -2)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """(N, 1, size, size), row i the weights of output pixel i; weights that fall outside go to the edge pixel."""
    pixel = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    offset = torch.arange(-_REACH, _REACH + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.view(-1, 1)) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # (N, 2 _REACH + 1)
    source = (pixel.view(-1, 1) + offset).clamp_(0, size - 1).long()  # (size, 2 _REACH + 1)
    matrix = sigma.new_zeros(len(sigma), size, size)
    matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weight.unsqueeze(1).expand(-1, size, -1))
    return matrix.unsqueeze(1)
