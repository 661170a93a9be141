"""What a run folder holds, as a test reads it."""

import json
from pathlib import Path
from typing import Any


def figures(folder: Path) -> dict[str, Any]:
    """Of summary.json."""
    return json.loads((folder / "summary.json").read_text())


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each line of metrics.jsonl that has one."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
