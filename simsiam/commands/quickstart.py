"""`simsiam quickstart`: the whole way on the embedded set, as the commands a user would type."""

import argparse
import json
import time
from pathlib import Path

from simsiam.commands.scripts import run_script

HELP = "pretrain on the embedded set, extract the encoder, train a linear classifier, print what came of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam quickstart`."""
    parser.add_argument("--out", default="runs/quickstart", help="run folder, made anew (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=0, help="processes; default: all GPUs, or two on CPU")


def run(arguments: argparse.Namespace) -> None:
    """Runs the four commands in order, each shown before it starts, then prints the table."""
    import torch

    out = Path(arguments.out)
    linear = out.with_name(out.name + "-linear") if out.name else Path("runs/quickstart-linear")
    for earlier in (out, linear):
        _put_aside(earlier)
    ranks = arguments.ranks or torch.cuda.device_count() or 2
    began = time.perf_counter()
    run_script("pretrain.py", "--recipe", "quickstart", "--out", out, ranks=ranks)
    run_script("simsiam", "extract", out, out / "encoder.pth")
    run_script("lincls.py", "--recipe", "lincls-quickstart", "--pretrained", out, "--out", linear, "--resume", "never")
    pretrained, classified = (json.loads((folder / "summary.json").read_text()) for folder in (out, linear))
    rows = {
        "kNN, random encoder": f"{pretrained['knn_random']:.1f}%",
        "kNN, pretrained": f"{pretrained['knn']:.1f}%",
        "linear top-1": f"{classified['top1']:.1f}%",
        "pretraining": f"{pretrained['pairs_per_second']:.0f} pairs/s on {ranks} ranks",
        "all together": f"{time.perf_counter() - began:.0f} s",
        "run folder": str(out),
    }
    width = max(map(len, rows))
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def _put_aside(folder: Path) -> None:
    """A quickstart is from scratch, but nothing of yours is deleted: the folder gets its time behind its name."""
    if folder.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        folder.rename(folder.with_name(f"{folder.name}-{stamp}"))
