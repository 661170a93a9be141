"""Is the network still telling images apart? Spread and rank of a batch's projections, and a verdict with a reason."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.distributed.collectives import gather_equal
from simsiam.settings.tree import Health

_RANK_IMAGES = 512  # the effective rank of more images than this costs more than a step and says little more


class Verdict(NamedTuple):
    """`state` is ok, warn or collapsed; `reason` is a sentence, empty for ok."""

    state: str
    reason: str


def spread(projections: Tensor) -> Tensor:
    """std over images of z / |z|, mean over channels, times sqrt(D): 1 for an even spread, 0 for a single point.

    Args:
        projections: (N, D). The paper plots this without the factor, against 1 / sqrt(D) (figure 2, middle).
    """
    return F.normalize(projections.float(), dim=1).std(0).mean() * math.sqrt(projections.shape[1])


def effective_rank(projections: Tensor) -> Tensor:
    """exp of the entropy of the singular values of projections (N, D), from 1 to min(N, D) (RankMe, 2210.02885)."""
    rows = F.normalize(projections[:_RANK_IMAGES].float(), dim=1).double()
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp()


def judge(std: float, rank: float, health: Health) -> Verdict:
    """The verdict on a spread and an effective rank (docs/metrics.md)."""
    if not (math.isfinite(std) and math.isfinite(rank)):
        return Verdict("warn", "the projections are not finite, or are too few to measure")
    if std < health.collapsed_std:
        return Verdict(
            "collapsed",
            f"std of z/|z| x sqrt(d) is {std:.3f}, below {health.collapsed_std}: images map to nearly one point",
        )
    if std < health.warn_std:
        return Verdict("warn", f"std of z/|z| x sqrt(d) is {std:.3f}, below {health.warn_std}")
    if rank < health.warn_rank:
        return Verdict("warn", f"effective rank of the projections is {rank:.1f}, below {health.warn_rank}")
    return Verdict("ok", "")


def examine(projections: Tensor, health: Health) -> tuple[dict[str, float | str], Verdict]:
    """Measures of the projections (N, D) of a view over all ranks, for the log, and the verdict on them."""
    rows = gather_equal(projections)
    # An eigenvalue solver raises where its input is not finite; the finite guard says it better.
    rank_of = effective_rank(rows) if rows.isfinite().all() else rows.new_tensor(math.nan)
    std, rank = torch.stack([spread(rows).double(), rank_of.double()]).tolist()
    verdict = judge(std, rank, health)
    return {"std": std, "effective_rank": rank, "verdict": verdict.state, "reason": verdict.reason}, verdict
