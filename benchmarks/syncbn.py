"""Batch-norm over ranks: both views' statistics in one collective, against a forward pass a view.

    python benchmarks/syncbn.py [--encoder resnet18] [--size 64] [--batch-size 8] [--rounds 8]

Two gloo ranks, one thread each: SimSiam's forward and backward pass without optimiser and gradient averaging, by turns
in one run. Both sides have the same layers, which on CPUs torch.nn.SyncBatchNorm cannot be.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import Operations, Seconds, in_turns
from benchmarks.report import Report, parser, ratios, spread
from simsiam.losses.cosine import negative_cosine
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm
from tests.ranks import run_ranks

RANKS = 2
PLAIN, OURS = "a forward a view", "both views at once"


def main() -> None:
    options = parser(__doc__, rounds=8)
    options.add_argument("--encoder", default="resnet18")
    options.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    options.add_argument("--batch-size", type=int, default=8, help="images of a rank")
    arguments = options.parse_args()
    seconds, counts, losses = run_ranks(RANKS, on_a_rank, arguments)[0]
    what = f"{arguments.encoder}, {arguments.batch_size} images a rank, views of {arguments.size} pixels"
    with Report(f"Batch-norm over ranks: {what}, {RANKS} gloo ranks", arguments, torch.device("cpu")) as report:
        rows = [(way, spread(seconds[way]), counts[way], f"{losses[way]:.7f}") for way in (PLAIN, OURS)]
        report.table(("way", "s", "collectives", "loss"), rows)
        report.ratio("both views at once, time", ratios(seconds[OURS], seconds[PLAIN]), at_most=0.70)
        report.ratio("both views at once, collectives", counts[OURS] / counts[PLAIN], at_most=0.50)
        report.ratio("losses apart", abs(losses[OURS] - losses[PLAIN]), at_most=1e-5)


def on_a_rank(arguments: argparse.Namespace) -> tuple[Seconds, dict[str, int], dict[str, float]]:
    """Seconds by round, collectives and loss of each way, on one rank."""
    torch.manual_seed(0)
    model = SimSiam(arguments.encoder).to(memory_format=torch.channels_last)
    shape = (2, RANKS * arguments.batch_size, 3, arguments.size, arguments.size)
    views = torch.randn(shape).chunk(RANKS, dim=1)[dist.get_rank()]
    norms = [layer for layer in model.modules() if isinstance(layer, ViewBatchNorm)]

    def passes(way: str) -> float:
        for norm in norms:
            norm.views = 2 if way == OURS else 1
        model.zero_grad()
        loss = model(views).loss if way == OURS else separately(model, views)
        loss.backward()
        return loss.item()

    def timed(way: str) -> float:
        dist.barrier()
        began = time.perf_counter()
        passes(way)
        return time.perf_counter() - began

    seconds = in_turns({way: lambda way=way: timed(way) for way in (PLAIN, OURS)}, arguments.rounds)
    counts, losses = {}, {}
    for way in (PLAIN, OURS):
        with Operations() as operations:
            losses[way] = passes(way)
        counts[way] = operations.collectives
    return seconds, counts, losses


def separately(model: SimSiam, views: Tensor) -> Tensor:
    """The plain way, as the published code has it: each view by itself."""
    z1, z2 = (model.projector(model.encoder(view)) for view in views)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    return negative_cosine(p1, z2.detach()) / 2 + negative_cosine(p2, z1.detach()) / 2


if __name__ == "__main__":
    main()
