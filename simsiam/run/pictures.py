"""Pictures where people would look rather than read."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from simsiam.settings.tree import Views


def view_grid(images: tuple[Tensor, ...], views: Views, columns: int = 8) -> Tensor:
    """Views of the first images of a batch, one image a column, its views below each other, small ones last.

    Args:
        images: normalised float (V, N, 3, S, S), a tensor for each size, the largest first.

    Returns:
        uint8 (3, H, W); a small view stands in the middle of its cell.
    """
    mean, std = torch.tensor(views.mean).view(1, 3, 1, 1), torch.tensor(views.std).view(1, 3, 1, 1)
    cells, side = [], images[0].shape[-1]
    for of_one_size in images:
        shown = of_one_size[:, :columns].flatten(0, 1).float().cpu()
        pixels = (shown * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
        room = side - pixels.shape[-1]
        cells.append(F.pad(pixels, [room // 2, room - room // 2] * 2, value=255))
    return make_grid(torch.cat(cells), nrow=min(columns, images[0].shape[1]), padding=2, pad_value=255)
