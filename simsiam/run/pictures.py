"""Pictures where people would look rather than read."""

import torch
from torch import Tensor
from torchvision.utils import make_grid

from simsiam.settings.tree import Views


def view_grid(images: Tensor, views: Views, columns: int = 8) -> Tensor:
    """Views of the first images of a batch, one image a column, its views below each other.

    Args:
        images: normalised float (V, N, 3, S, S).

    Returns:
        uint8 (3, H, W).
    """
    shown = images[:, :columns].flatten(0, 1).float().cpu()
    mean, std = torch.tensor(views.mean).view(1, 3, 1, 1), torch.tensor(views.std).view(1, 3, 1, 1)
    pixels = (shown * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return make_grid(pixels, nrow=min(columns, images.shape[1]), padding=2, pad_value=255)
