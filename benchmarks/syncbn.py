"""Batch-norm over ranks: both views' statistics in one collective, against a forward a view.

    python benchmarks/syncbn.py [--encoder resnet18] [--size 64] [--batch-size 8] [--rounds 8]

Two gloo ranks, one thread each, SimSiam's step without optimiser and gradient averaging; by turns in one run. Goals: at
most 0.70 of the time, exactly half of the collectives, the same loss.
"""

import argparse
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from simsiam.distributed import collectives
from simsiam.losses.cosine import negative_cosine
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm

RANKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch-size", type=int, default=8, help="images of a rank")
    parser.add_argument("--rounds", type=int, default=8)
    mp.spawn(on_a_rank, (parser.parse_args(), _free_port()), nprocs=RANKS)


def on_a_rank(rank: int, arguments: argparse.Namespace, port: int) -> None:
    """One rank; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = SimSiam(arguments.encoder).to(memory_format=torch.channels_last)
    shape = (2, RANKS * arguments.batch_size, 3, arguments.size, arguments.size)
    views = torch.randn(shape).chunk(RANKS, dim=1)[rank]
    calls = _counted()
    ways = {"a forward a view": (1, separately), "both views at once": (2, together)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses, counts = {}, {}
    for number in range(1 + arguments.rounds):
        for name, (norms, way) in ways.items():
            for layer in model.modules():
                if isinstance(layer, ViewBatchNorm):
                    layer.views = norms
            model.zero_grad()
            dist.barrier()
            calls.clear()
            began = time.perf_counter()
            loss = way(model, views)
            loss.backward()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
            counts[name] = len(calls)
            losses.setdefault(name, loss.item())
    if rank == 0:
        _report(arguments, seconds, counts, losses)
    dist.barrier()
    dist.destroy_process_group()


def together(model: SimSiam, views: Tensor) -> Tensor:
    """Ours: one batch of both views."""
    return model(views).loss


def separately(model: SimSiam, views: Tensor) -> Tensor:
    """The plain way: each view by itself, as the published code does it."""
    z1, z2 = (model.projector(model.encoder(view)) for view in views)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    return negative_cosine(p1, z2.detach()) / 2 + negative_cosine(p2, z1.detach()) / 2


def _report(
    arguments: argparse.Namespace, seconds: dict[str, list[float]], counts: dict[str, int], losses: dict[str, float]
) -> None:
    plain, ours = seconds
    ratios = [b / a for a, b in zip(seconds[plain], seconds[ours])]
    print(f"{arguments.encoder}, {arguments.batch_size} images of {arguments.size} pixels on each of {RANKS} ranks\n")
    print("| way | s | collectives | loss |\n|---|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {statistics.median(taken):.3f} | {counts[name]} | {losses[name]:.7f} |")
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"\ntime {spread}, goal 0.70; collectives {counts[ours] / counts[plain]:.2f}, goal 0.50")
    print(f"losses {abs(losses[ours] - losses[plain]):.1e} apart, goal 1e-5")


def _counted() -> list[str]:
    """Has every collective of the layers add its name to a list."""
    calls: list[str] = []
    gather, reduce = collectives._all_gather, dist.all_reduce

    def counting(name, plain):
        def call(*given, **named):
            calls.append(name)
            return plain(*given, **named)

        return call

    collectives._all_gather, dist.all_reduce = counting("gather", gather), counting("reduce", reduce)
    return calls


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
