"""Is the network still telling images apart? Spread and rank of a batch's projections, and a verdict with a reason."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.distributed.collectives import gather_equal, mean_over_ranks
from simsiam.settings.tree import Health

_RANK_IMAGES = 512  # the effective rank of more images than this costs more than a step and says little more


class Verdict(NamedTuple):
    """`state` is ok, warn, stuck or collapsed; `reason` is a sentence, empty for ok."""

    state: str
    reason: str


class Learned(NamedTuple):
    """Where a loss is between its least value and chance, and what the projections of two views share by themselves.

    Attributes:
        share: (chance - loss) / (chance - least); for SimSiam, the cosine of predictions and targets.
        agreement: mean cosine of the projections of an image's first two views.
        step: steps done.
    """

    share: float
    agreement: float
    step: int


def limits(health: Health, *, collapsed_std: float, warn_std: float) -> Health:
    """The limits that are asked for and, where none are, these of the method."""
    asked = health.collapsed_std, health.warn_std
    collapsed, warn = (own if value is None else value for value, own in zip(asked, (collapsed_std, warn_std)))
    return replace(health, collapsed_std=collapsed, warn_std=warn)


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


def judge(std: float, rank: float, health: Health, learned: Learned | None = None) -> Verdict:
    """The verdict on a spread, an effective rank, and what was learned where the loss can say it (docs/metrics.md).

    `health` has all its limits, as `limits` gives it.
    Spread and loss together tell the failures apart (SimSiam, section 4.1, footnote 4): in a collapse images are one
    point and the loss is near its least value; a predictor that cannot learn, or a loss that diverges, leaves images
    apart and the loss high.
    """
    if not (math.isfinite(std) and math.isfinite(rank)):
        return Verdict("warn", "the projections are not finite, or are too few to measure")
    spread_is = f"std of z/|z| x sqrt(d) is {std:.3f}"
    if std < health.collapsed_std:
        if learned is not None and learned.share < 0.5:
            high = f"but the loss is high, {learned.share:.2f} of the way from chance to its least value"
            return Verdict("warn", f"{spread_is}, below {health.collapsed_std}, {high}: no collapse so far")
        return Verdict("collapsed", f"{spread_is}, below {health.collapsed_std}: images map to nearly one point")
    if std < health.warn_std:
        return Verdict("warn", f"{spread_is}, below {health.warn_std}")
    if learned is not None and learned.step >= health.stuck_after and learned.share < health.stuck * learned.agreement:
        return Verdict(
            "stuck",
            f"the loss stays high, {learned.share:.2f} of the way from chance to its least value where the projections "
            f"of two views agree by {learned.agreement:.2f}, and {spread_is}: no collapse, predictions do not learn",
        )
    if rank < health.warn_rank:
        return Verdict("warn", f"effective rank of the projections is {rank:.1f}, below {health.warn_rank}")
    return Verdict("ok", "")


def examine(
    projections: Tensor,
    health: Health,
    loss: Tensor | None = None,
    loss_range: tuple[float, float] | None = None,
    step: int = 0,
) -> tuple[dict[str, float | str], Verdict]:
    """Measures of projections (V, N, D) over all ranks, for the log, and the verdict on them.

    Args:
        loss: this rank's; loss_range: its least value and chance, where a method knows them. step: steps done.
    """
    rows = gather_equal(projections[0])
    # An eigenvalue solver raises where its input is not finite; the finite guard says it better.
    rank_of = effective_rank(rows) if rows.isfinite().all() else rows.new_tensor(math.nan)
    numbers = [spread(rows).double(), rank_of.double()]
    knows = loss is not None and loss_range is not None and len(projections) > 1
    if knows:
        least, chance = loss_range
        agreement = F.cosine_similarity(projections[0].float(), projections[1].float(), dim=1).mean()
        of_rank = torch.stack([(chance - loss.detach().float()) / (chance - least), agreement])
        numbers += mean_over_ranks(of_rank).double().unbind()
    std, rank, *rest = torch.stack(numbers).tolist()
    learned = Learned(*rest, step) if knows else None
    verdict = judge(std, rank, health, learned)
    measures = {"std": std, "effective_rank": rank, "verdict": verdict.state, "reason": verdict.reason}
    return {**measures, **({"agreement": learned.agreement} if knows else {})}, verdict
