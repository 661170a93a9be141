"""NT-Xent, the loss of SimCLR, with the images of all ranks as negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.distributed.collectives import gather_with_gradient, rank


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """-log exp(s_ij / t) / sum_{k != i} exp(s_ik / t), in float32 (SimCLR, arXiv 2002.05709, equation 1).

    i is a view, j the other view of its image, and k runs over both views of every image of every rank; s is the cosine
    similarity. Each rank gives the mean over its own 2N views, and gradients flow into the other ranks' views too.

    Args:
        projections: (2, N, D), N the same on every rank.
        temperature: t.

    Returns:
        scalar; log(2 x images of all ranks - 1) where all similarities are equal.
    """
    _, n, _ = projections.shape
    z = projections.flatten(0, 1)
    z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
    everyone = gather_with_gradient(z)
    with torch.autocast(z.device.type, enabled=False):  # a 16-bit product would round s / t to a part in a hundred
        logits = z @ everyone.T / temperature
    view = torch.arange(2 * n, device=z.device)
    first = 2 * n * rank()
    logits.scatter_(1, (first + view).unsqueeze(1), float("-inf"))  # a view is no candidate for itself
    return F.cross_entropy(logits, first + view.roll(n))
