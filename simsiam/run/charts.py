"""Which charts some runs have in common, and which they should have and lack."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from simsiam.run.curves import Line
from simsiam.run.record import CURVES, Record

TITLES = {
    "loss": "loss",
    "knn": "kNN top-1, percent",
    "top1": "top-1, percent",
    "AP50": "box AP50, percent",
    "AP": "box AP, percent",
    "AP75": "box AP75, percent",
    "mask_AP": "mask AP, percent",
    "std": "std of projections (1: even spread)",
    "effective_rank": "effective rank",
    "lr": "learning rate",
    "pairs_per_second": "pairs/s",
}
_EXPECTED = {
    "pretraining": ("loss", "knn", "std", "effective_rank", "lr", "pairs_per_second"),
    "classification": ("loss", "top1", "pairs_per_second"),
    "detection": ("loss", "AP", "lr", "pairs_per_second"),
}


class Chart(NamedTuple):
    """What `simsiam.run.curves.chart` draws."""

    title: str
    x_name: str
    lines: list[Line]


def charts(runs: Mapping[str, Record]) -> Iterator[Chart]:
    """A chart for each figure that one of the runs has; against epochs where all runs know theirs."""
    by_epoch = all(run.steps_per_epoch for run in runs.values() if run.series)
    for key in CURVES:
        lines = []
        for style, (name, run) in enumerate(runs.items()):
            points = run.series.get(key, [])
            if by_epoch:
                points = [(step / run.steps_per_epoch, value) for step, value in points]
            if points:
                lines.append(Line(name, points, style))
        if lines:
            yield Chart(TITLES[key], "epoch" if by_epoch else "step", lines)


def lacking(kind: str, runs: Mapping[str, Record]) -> list[str]:
    """Titles of the figures that runs of this kind log, and that none of these has logged."""
    return [TITLES[key] for key in _EXPECTED[kind] if not any(run.series.get(key) for run in runs.values())]
