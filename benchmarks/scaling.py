"""Training on 1, 2 and 4 ranks with a thread each: pairs/s, and what crosses the ranks, against a formula.

    python benchmarks/scaling.py [--ranks 1,2,4] [--encoder resnet50] [--size 224] [--batch-size 8] [--gloo]

On one machine, through its memory as a run on CPUs has it, or with --gloo by sockets; as many images a rank whatever
their number; by turns. More ranks than cores say nothing but that it works. A step has two collectives for each
batch-norm and one for each bucket of gradients. Bytes are those that a rank hands to them: for each batch-norm of C
channels and V views 4 (2 V C + 1) forward and 4 x 2 V C backward, and 4 for each parameter. Beside several ranks stand
as many processes that train alone at once: what cores, caches and memory of the machine give so many.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from benchmarks.measure import Operations
from benchmarks.report import Report, parser, ratios, spread
from simsiam.distributed.collectives import meet_in
from simsiam.distributed.host_memory import HostMemory
from simsiam.distributed.runtime import Runtime, keep_freed_memory
from simsiam.distributed.threads import usable_cores
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain
from simsiam.training.build import build_state
from simsiam.training.step import train_step
from tests.ranks import run_ranks

_WARM = 3  # DDP sorts its buckets anew after the first step


class Crossing(NamedTuple):
    """What a rank hands over in a step."""

    collectives: int
    bytes: int


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--ranks", default="1,2,4", help="numbers of ranks, the first to compare with")
    options.add_argument("--encoder", default="resnet50")
    options.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    options.add_argument("--batch-size", type=int, default=8, help="images of a rank")
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--gloo", action="store_true", help="cross by gloo's sockets, as between hosts")
    arguments = options.parse_args()
    numbers = [int(number) for number in arguments.ranks.split(",")]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    alone: dict[int, list[float]] = {number: [] for number in numbers if number > 1}
    crossings = {}
    for _ in range(arguments.rounds):
        for number in numbers:
            seconds, *crossings[number] = run_ranks(number, on_a_rank, arguments)[0]
            rates[number].append(number * arguments.batch_size / seconds)
        for number, taken in alone.items():
            taken.append(number * arguments.batch_size / seconds_alone(number, arguments))
    each = f"{arguments.batch_size} images of {arguments.size} pixels and a thread a rank"
    what = f"{arguments.encoder}, {each}, float32, over {'gloo' if arguments.gloo else 'shared memory'}"
    with Report(f"Ranks: {what}", arguments, torch.device("cpu")) as report:
        rows = []
        for number in numbers:
            counted, expected = crossings[number]
            bytes_told = f"{counted.bytes:,}", f"{expected.bytes:,}"
            beside = spread(alone[number]) if number in alone else ""
            rows.append((number, spread(rates[number]), beside, counted.collectives, expected.collectives, *bytes_told))
        crosses = ("collectives a step", "formula", "bytes a rank hands over", "formula")
        report.table(("ranks", "pairs/s", "each alone, at once", *crosses), rows)
        base = numbers[0]
        for number in numbers[1:]:
            shares = [share * base / number for share in ratios(rates[number], rates[base])]
            fits = number <= usable_cores()
            what = f"{number} ranks over {number / base:g} times {base}"
            report.ratio(what if fits else f"{what}, more ranks than cores", shares, at_least=0.85 if fits else None)
            if number in alone:
                report.ratio(f"{number} ranks over {number} processes alone", ratios(rates[number], alone[number]))


def on_a_rank(arguments: argparse.Namespace) -> tuple[float, Crossing, Crossing]:
    """Median seconds of a step on one rank, what crosses in one, and what the formula says."""
    keep_freed_memory()  # as every run does
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    settings = Pretrain(
        encoder=arguments.encoder, batch_size=ranks * arguments.batch_size, epochs=100, precision="fp32",
        optim=Optim(lr=0.01),
    )  # fmt: skip
    torch.manual_seed(0)
    method, numbers = SimSiam(settings.encoder), derive(settings, ranks, 100 * settings.batch_size)
    state = build_state(method, settings, numbers, Runtime(rank, ranks, rank, torch.device("cpu")))
    views = torch.randn(2, arguments.batch_size, 3, arguments.size, arguments.size)
    if ranks > 1 and not arguments.gloo:
        meet_in(HostMemory.among(rank, ranks, dist.distributed_c10d._get_default_store()))
    taken = []
    for _ in range(_WARM + arguments.steps):
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter()
        train_step(state, [(views,)])
        taken.append(time.perf_counter() - began)
    meet_in(None)  # what crosses is counted where the dispatcher sees it
    with Operations() as operations:
        train_step(state, [(views,)])
    expected = Crossing(0, 0)
    if ranks > 1:
        # torch tells them as text: "1024, 2048"
        buckets = state.model._get_ddp_logging_data()["rebuilt_bucket_sizes"]
        expected = formula(method, len(buckets.split(",")))
    return median(taken[_WARM:]), Crossing(operations.collectives, operations.bytes), expected


def seconds_alone(number: int, arguments: argparse.Namespace) -> float:
    """Median seconds of a step, the mean of so many processes that share nothing but the machine."""
    with multiprocessing.get_context("fork").Pool(number, torch.set_num_threads, (1,)) as processes:
        return mean(seconds for seconds, *_ in processes.map(on_a_rank, [arguments] * number, chunksize=1))


def formula(method: SimSiam, buckets: int) -> Crossing:
    """What a step should hand over."""
    sizes = [layer.views * layer.num_features for layer in method.modules() if isinstance(layer, ViewBatchNorm)]
    norms = sum(4 * (2 * size + 1) + 4 * 2 * size for size in sizes)
    return Crossing(2 * len(sizes) + buckets, norms + sum(4 * parameter.numel() for parameter in method.parameters()))


if __name__ == "__main__":
    main()
