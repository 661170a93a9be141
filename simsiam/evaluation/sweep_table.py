"""What a sweep found: every cell of its grid, and the one that is taken."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simsiam.atomic import write_atomically
from simsiam.evaluation.accuracy import Accuracy
from simsiam.settings.sweep import cell_name


@dataclass
class SweepRow:
    """A cell: its rates, top-1 in percent on the held-out training images (NaN where it diverged), and, where it was
    measured too, its accuracy on the validation images, which has no say in the choice."""

    cell: dict[str, float]
    held_out_top1: float
    val: Accuracy | None = None


def choose(rows: Sequence[SweepRow]) -> int:
    """The number of the best cell on the held-out images, the first of equals."""
    return max(range(len(rows)), key=lambda row: (not math.isnan(rows[row].held_out_top1), rows[row].held_out_top1))


def write_sweep(rows: Sequence[SweepRow], chosen: int, folder: Path) -> str:
    """Writes sweep.json, a list of objects, and returns the same as lines of text."""
    objects, lines = [], ["held-out  val       rates"]
    for number, row in enumerate(rows):
        diverged = math.isnan(row.held_out_top1)
        val = {"val_top1": row.val.top1, "val_top5": row.val.top5} if row.val else {}
        held_out = {"held_out_top1": None if diverged else row.held_out_top1}
        objects.append({**row.cell, **held_out, **val, "chosen": number == chosen})
        first = f"{'diverged' if diverged else f'{row.held_out_top1:.2f}%':<8}"
        second = f"{f'{row.val.top1:.2f}%' if row.val else '-':<8}"
        lines.append(f"{first}  {second}  {cell_name(row.cell)}{'  <- chosen' if number == chosen else ''}")
    write_atomically(folder / "sweep.json", json.dumps(objects, indent=2) + "\n")
    return "\n".join(lines)
