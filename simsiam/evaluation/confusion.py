"""Accuracy class by class: a table for reading and a picture for looking."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from simsiam.evaluation.accuracy import mean_per_class

_NAMED = 30  # classes whose names still find room beside the picture


def write_confusion(confusion: Tensor, classes: tuple[str, ...], folder: Path) -> None:
    """per_class.csv and confusion.png from int64 (C, C), images of class i that were called j."""
    images, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    mistaken = confusion - torch.diag(confusion.diagonal())
    with (folder / "per_class.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "images", "top1", "most_often_taken_for", "times"])
        for name, count, hits, row in zip(classes, images, right, mistaken, strict=True):
            times, other = row.max(0)
            taken_for = [classes[int(other)], int(times)] if times else ["", 0]
            table.writerow([name, count, f"{100 * hits / count:.2f}" if count else "", *taken_for])
    _draw(confusion, classes, folder / "confusion.png")


def _draw(confusion: Tensor, classes: tuple[str, ...], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # costs half a second, and only rank 0 draws
    from matplotlib.figure import Figure

    percent = 100 * confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    side = 7.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    # The square root lets one confusion in a hundred be seen beside a diagonal near 100.
    shown = axes.imshow(percent.sqrt().numpy(), cmap="magma", vmin=0, vmax=10, interpolation="nearest")
    axes.set(xlabel="called", ylabel="is", title=f"{mean_per_class(confusion):.1f}% right, mean over classes")
    if len(classes) <= _NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="percent of the class")
    bar.set_ticks([0, 1, 2, 5, 10], labels=["0", "1", "4", "25", "100"])
    FigureCanvasAgg(figure).print_png(str(path))
