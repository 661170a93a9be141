"""Negative cosine similarity, the loss of SimSiam."""

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """D(p, z) = -mean_n (p_n / |p_n|) . (z_n / |z_n|), in float32 (SimSiam, equation 1).

    Args:
        predictions, targets: (N, D). A stop-gradient on z is the caller's `z.detach()`.

    Returns:
        scalar in [-1, 1].
    """
    p, z = F.normalize(predictions.float(), dim=1), F.normalize(targets.float(), dim=1)
    return -(p * z).sum(1).mean()
