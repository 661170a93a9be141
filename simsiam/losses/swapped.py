"""Swapped prediction, the loss of SwAV: the code of one view is predicted from another."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean over pairs a != v of -mean_n sum_k q_nk(a) log softmax_k(scores_nk(v) / temperature), at least in float32.

    SwAV (arXiv 2006.09882), equation 2, and equation 6 with more views than codes. The paper sums over the pairs; its
    code takes the mean, as here.

    Args:
        scores: (V, N, K) of every view. codes: (A, N, K) of the first A views, constants.

    Returns:
        scalar; log K where all prototypes are alike to every sample.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_p = F.log_softmax(scores / temperature, dim=-1)
    pairs = [(a, v) for a in range(len(codes)) for v in range(len(scores)) if a != v]
    return -torch.stack([(codes[a] * log_p[v]).sum(1).mean() for a, v in pairs]).mean()
