"""Which rank holds up the others, and whether its data does, from what each rank's clock has read."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import torch

from simsiam.distributed.collectives import gather_equal, world_size

_NOTABLE = 0.1  # of a step


def over_ranks(reading: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The readings of all ranks as one account, seconds a step (docs/metrics.md). Every rank must call it.

    One rank has nobody to wait for: its reading stays as it is, without the collectives.
    """
    if world_size() == 1:
        return {key: value for key, value in reading.items() if key != "collective_seconds"}
    keys = ("step_seconds", "data_seconds", "collective_seconds")
    mine = torch.tensor([reading[key] for key in keys], dtype=torch.float64, device=device)
    step, data, collective = gather_equal(mine).view(-1, len(keys)).T.tolist()
    means = dict(zip(keys, map(fmean, (step, data, collective))))
    return {**reading, **means, **compare(data, collective)}


def compare(data: Sequence[float], collective: Sequence[float]) -> dict[str, float]:
    """The slowest of two or more ranks, from each one's seconds waiting for data and in collectives.

    All ranks' steps take equally long. The slowest rank is the one that the others wait for: it comes last to the
    collectives and waits least in them.
    """
    slowest = min(range(len(collective)), key=collective.__getitem__)
    longest = max(range(len(data)), key=data.__getitem__)
    return {
        "data_seconds_max": data[longest],
        "data_wait_rank": longest,
        "skew/slowest_rank": slowest,
        "skew/seconds": _others(collective, slowest) - collective[slowest],
        "skew/data_seconds": data[slowest] - _others(data, slowest),
    }


def remark(account: Mapping[str, float]) -> str:
    """A word on a rank that makes the steps longer by more than a tenth; else empty."""
    late = account.get("skew/seconds", 0.0)
    if late <= _NOTABLE * account["step_seconds"]:
        return ""
    why = ", waits for data" if account["skew/data_seconds"] > late / 2 else ""
    return f"rank {account['skew/slowest_rank']} late by {late / account['step_seconds']:.0%} of a step{why}"


def _others(values: Sequence[float], but: int) -> float:
    """The median over the other ranks."""
    return median(value for rank, value in enumerate(values) if rank != but)
