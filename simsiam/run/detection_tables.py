"""Runs of transfer/detect.py -> a table of ours, and beside it one of what others published."""

import math
from collections.abc import Iterable

from simsiam.run.published_detection import PUBLISHED_DETECTION
from simsiam.run.record import Record
from simsiam.run.report import Table, cell

_FIGURES = ("AP50", "AP", "AP75")
_BOX = tuple(f"box {name}" for name in _FIGURES)
_MASK = tuple(f"mask {name}" for name in _FIGURES)
_BUILT_IN = "shapes"


def detection_table(runs: Iterable[Record]) -> Table:
    """Of each completed detection run a row; figures of several trials as `mean +- std`."""
    headers = ("encoder", "trained on", "tested on", "head", "iterations", "trials", *_BOX, *_MASK)
    rows = [_row(run) for run in _completed(runs)]
    return _without_masks(Table("Detection", headers, rows, frozenset(headers[4:])))


def published_detection_table(runs: Iterable[Record]) -> Table:
    """What others published on the sets, VOC's or COCO's, that our completed runs were tested on; no number is bare."""
    layouts = {
        str(run.config.get("test_set")).partition("_")[0]
        for run in _completed(runs)
        if run.config.get("data") != _BUILT_IN
    }
    numbers = tuple(f"published {name}" for name in (*_BOX, *_MASK))
    headers = ("method", "encoder", "epochs", "trained on", "tested on", "head", *numbers, "setting", "source")
    rows = [
        (p.method, "resnet50", cell(p.epochs), *p.task[1:], *p.box, *p.mask, p.setting, p.source)
        for p in PUBLISHED_DETECTION
        if p.task.layout in layouts
    ]
    title = "Detection published by others, not measured here"
    return _without_masks(Table(title, headers, rows, frozenset(("epochs", *numbers))))


def _completed(runs: Iterable[Record]) -> list[Record]:
    return [run for run in runs if run.kind == "detection" and run.state == "completed" and "AP" in run.summary]


def _row(run: Record) -> list[str]:
    config, name, sets = run.config, run.config.get("encoder"), run.config.get("train_sets")
    where = f" of {_BUILT_IN}" if config.get("data") == _BUILT_IN else ""
    return [
        cell(config.get("pretrained")) + (f" ({name})" if name else ""),
        (" + ".join(map(str, sets)) if isinstance(sets, list) else cell(sets)) + where,
        cell(config.get("test_set")) + where,
        cell(config.get("head")),
        cell(config.get("iterations")),
        cell(run.summary.get("trials", 1)),
        *(_figure(run, f"{kind}{figure}") for kind in ("", "mask_") for figure in _FIGURES),
    ]


def _figure(run: Record, name: str) -> str:
    """`81.50 +- 0.20`, without a deviation where there is none."""
    mean, deviation = (run.summary.get(key) for key in (name, f"{name}_std"))
    if not _is_number(mean):
        return ""
    return f"{mean:.2f} +- {deviation:.2f}" if _is_number(deviation) else f"{mean:.2f}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _without_masks(table: Table) -> Table:
    """The table without the columns of masks where no row has any."""
    masks = {k for k, header in enumerate(table.headers) if header.removeprefix("published ") in _MASK}
    if any(row[k] for row in table.rows for k in masks):
        return table
    headers, *rows = ([text for k, text in enumerate(line) if k not in masks] for line in (table.headers, *table.rows))
    return table._replace(headers=headers, rows=rows, numbers=table.numbers & set(headers))
