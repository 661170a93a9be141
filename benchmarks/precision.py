"""kNN after the quickstart in each precision, over seeds: does what is faster cost accuracy?

    python benchmarks/precision.py [--precisions fp32,bf16,fp16] [--rounds 3] [-- OPTIONS OF pretrain.py]

A round is a seed: it draws the weights, the order and the views, the same in each precision. Two precisions agree where
their means over the seeds are within two standard errors of their difference. A CPU computes fp16 slowly.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.report import ROOT, Report, parser, spread


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--precisions", default="fp32,bf16,fp16", help="the first to compare with")
    options.add_argument("more", nargs="*", help="further options of pretrain.py, after --")
    arguments = options.parse_args()
    precisions = arguments.precisions.split(",")
    knn: dict[str, list[float]] = {precision: [] for precision in precisions}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Report(f"kNN of the quickstart by precision, {arguments.rounds} seeds", arguments, device) as report:
        for seed in range(arguments.rounds):
            for precision in precisions:
                knn[precision].append(accuracy(precision, seed, arguments.more))
        seeds = [f"seed {seed}" for seed in range(arguments.rounds)]
        report.table(("kNN", *seeds, "mean"), [(p, *knn[p], f"{statistics.mean(knn[p]):.1f}") for p in precisions])
        base, *others = precisions
        for precision in others:
            apart = [a - b for a, b in zip(knn[precision], knn[base])]
            report.say(f"{precision} beside {base}, points by seed: {spread(apart)}\n")
            what = f"{precision} beside {base}: means apart, in standard errors"
            report.ratio(what, errors_apart(knn[precision], knn[base]), at_most=2)


def accuracy(precision: str, seed: int, more: Sequence[str]) -> float:
    """The kNN top-1 in percent at the end of a run on one rank."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "pretrain.py", "--recipe", "quickstart", "--out", f"{folder}/run"]
        ends = ("--precision", precision, "--seed", str(seed), "--knn-every", "1000", "--checkpoint.every_epochs", "0")
        subprocess.run([*command, *more, *ends], check=True, stdout=sys.stderr)
        return json.loads(Path(folder, "run/summary.json").read_text())["knn"]


def errors_apart(some: Sequence[float], others: Sequence[float]) -> float:
    """Distance of two means in standard errors of it; variances need not be equal (Welch)."""
    variance = sum(statistics.variance(side) / len(side) for side in (some, others))
    return abs(statistics.mean(some) - statistics.mean(others)) / variance**0.5


if __name__ == "__main__":
    main()
