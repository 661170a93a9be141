"""kNN by epoch, and seconds of an epoch, of a run of pretrain.py that has been made, or cut off.

    python benchmarks/epochs.py RUN [--goal SECONDS]

Seconds are those of training alone, without evaluations and saves.
"""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from benchmarks.report import Report, parser


def main() -> None:
    options = parser(__doc__, rounds=1)
    options.add_argument("run", type=Path, help="the run folder")
    options.add_argument("--goal", type=float, help="at most so many seconds an epoch")
    arguments = options.parse_args()
    lines = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line]
    if not steps:
        sys.exit(f"{arguments.run} has no step in its metrics.jsonl; give a run that logged one")
    per_epoch = round(steps[-1]["step"] / steps[-1]["epoch"])
    settings = yaml.safe_load((arguments.run / "config.yaml").read_text())
    done = f"{steps[-1]['epoch']:.1f} of {settings['epochs']} epochs"
    what = f"{settings['encoder']}, batch {settings['batch_size']}, {done}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Report(f"A run: {what}", arguments, device) as report:
        answers = [line for line in lines if "knn" in line]
        rows = [(f"{line['step'] / per_epoch:.1f}", line["knn"], *_before(steps, line["step"])) for line in answers]
        report.table(("epoch", "kNN", "loss", "std", "pairs/s"), rows)
        seconds = statistics.median(per_epoch * line["step_seconds"] for line in steps)
        waiting = statistics.median(line["data_seconds"] / line["step_seconds"] for line in steps)
        report.ratio("seconds of an epoch", seconds, at_most=arguments.goal)
        report.ratio("of them waiting for data", waiting)


def _before(steps: list[dict], step: int) -> tuple[str, str, str]:
    """Loss, std and pairs/s of the last logged step until then."""
    logged = next((line for line in reversed(steps) if line["step"] <= step), {})
    return tuple(f"{logged[name]:.4g}" if name in logged else "" for name in ("loss", "std", "pairs_per_second"))


if __name__ == "__main__":
    main()
