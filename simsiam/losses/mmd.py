"""A contrastive loss on density ratios that come from matching kernel means (MMD), with no discriminator to train."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simsiam.distributed.collectives import gather_with_gradient, rank

_FLOOR = 1e-3  # what is added to a ratio after ReLU: the estimate is no positive function


def mmd_contrast(
    first: Tensor, second: Tensor, orders: Tensor, sigmas: Sequence[float] = (1, 10, 100, 1000), ridge: float = 1e-3
) -> Tensor:
    """mean_i -log(r_i / sum_j r_ij), r the ratio of the density of pairs of one image to that of pairs of any two.

    Source: hanseungwook/SimSiam, branch adv-mmd, models/simsiam.py, after Sugiyama, Suzuki and Kanamori 2012, Density
    Ratio Estimation in Machine Learning, section 3.3, and Srivastava et al., arXiv 1806.00607, equation 6: for a kernel
    of width s the ratio of the set u to the set d, at the N points of d, is w_s = (K_dd + ridge 1)^-1 K_du 1; and
    w = ReLU(mean of w_s over `sigmas`) + 0.001.

    Pairs are compared by k_s((a, b), (a', b')) = exp(-(|a - a'|^2 + |b - b'|^2) / (2 s^2)).

    * r_i = 1 / w_i, w of the pairs (a_p(j), b_q(j)) to the pairs (a_j, b_j), at (a_i, b_i); p and q are `orders`.
    * r_ij = the ratio of the pairs (b_l, b_l), what pairs would be were views equal, to the pairs (a_i, b_l) for all l,
      at (a_i, b_j). The matrix K_dd is the same for all i.

    Each rank gives the mean over its own images i; j and l run over the images of all ranks, and gradients too. It is
    computed in float64, because kernel matrices are near singular by nature.

    Args:
        first, second: projections a, b (N, D) of this rank's images, N the same on every rank.
        orders: int64 (2, images of all ranks), p and q, the same on every rank.
    """
    mine = slice(rank() * len(first), (rank() + 1) * len(first))
    with torch.autocast(first.device.type, enabled=False):
        a, b = (gather_with_gradient(z).double() for z in (first, second))
        aa, bb, ab = (_kernels(x, y, sigmas) for x, y in ((a, a), (b, b), (a, b)))
        shuffled = (aa[:, :, orders[0]] * bb[:, :, orders[1]]).sum(2, keepdim=True)
        weights = _ratio(aa * bb, shuffled, ridge)[:, 0]
        # Column i: the ratios at (a_i, b_j) for all j.
        cross = _ratio(bb, bb @ ab[:, mine].transpose(1, 2), ridge)
        loss = (cross.sum(0).log() + weights[mine].log()).mean()
    return loss.to(torch.promote_types(first.dtype, torch.float32))


def _kernels(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """exp(-|x_i - y_j|^2 / (2 s^2)) of x (N, D) and y (M, D), as (sigmas, N, M)."""
    squares = x.square().sum(1).unsqueeze(1) + y.square().sum(1) - 2 * x @ y.T
    return torch.stack([(squares.clamp_min(0) / (-2 * sigma**2)).exp() for sigma in sigmas])


def _ratio(matrix: Tensor, against: Tensor, ridge: float) -> Tensor:
    """ReLU of the mean over kernels of (K + ridge 1)^-1 `against`, plus the floor; K (S, N, N), `against` (S, N, M)."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # cholesky_ex, unlike cholesky, does not wait for the device to see whether it succeeded; the ridge sees to that.
    factor = torch.linalg.cholesky_ex(matrix + ridge * eye).L
    return torch.cholesky_solve(against, factor).mean(0).relu() + _FLOOR
