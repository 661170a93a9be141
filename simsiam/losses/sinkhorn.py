"""Sinkhorn-Knopp over the samples of all ranks: SwAV's soft assignments, which use all prototypes equally."""

import torch
from torch import Tensor

from simsiam.distributed.collectives import gather_equal


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes Q = Diag(u) exp(scores / epsilon) Diag(v) of this rank's samples (SwAV, arXiv 2006.09882, equation 5).

    u and v come from `iterations` rounds: first every prototype gets an equal mass over the samples of all ranks, then
    every sample mass 1 over the prototypes. In logarithms, so nothing overflows or vanishes, however small epsilon is.

    Args:
        scores: (..., N, K), N samples by K prototypes; N may differ between ranks, leading dimensions stand apart.
        epsilon: weight of the entropy: smaller is harder. iterations: at least 1; the paper takes 3.

    Returns:
        (..., N, K), rows of sum 1, at least in float32, without gradient.
    """
    log_codes = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        # The equal mass is 1 / K and a sample's 1 / N in the paper; constants, which the next division takes out.
        log_codes = (log_codes - _log_mass(log_codes)).log_softmax(-1)
    return log_codes.exp()


def _log_mass(log_codes: Tensor) -> Tensor:
    """log of each prototype's mass (..., 1, K) over the samples of all ranks."""
    mine = log_codes.logsumexp(-2, keepdim=True)
    return gather_equal(mine.unsqueeze(0)).logsumexp(0)
