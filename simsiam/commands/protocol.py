"""`simsiam protocol`: an encoder measured by all the protocols asked for, each once, into one ledger."""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simsiam.commands.scripts import add_settings, run_script
from simsiam.errors import UserError
from simsiam.settings.parse import parse, recipe_names
from simsiam.settings.tree import Classify, FineTune, Linear

if TYPE_CHECKING:
    from torch import nn

    from simsiam.distributed.runtime import Runtime

T = TypeVar("T")
HELP = "measure an encoder by kNN, linear classification and few labels, into one results.jsonl"

_RECIPES = {
    "imagenet": {
        "knn": "lincls-imagenet",
        "linear": "lincls-imagenet",
        "linear-sgd": "lincls-imagenet-sgd",
        "1pct": "semisup-1pct",
        "10pct": "semisup-10pct",
    },
    "cifar10": {
        "knn": "lincls-cifar10",
        "linear": "lincls-cifar10",
        "1pct": "semisup-cifar10-1pct",
        "10pct": "semisup-cifar10-10pct",
    },
    "cifar100": {"knn": "lincls-cifar100", "linear": "lincls-cifar100"},
    "quickstart": {"knn": "lincls-quickstart", "linear": "lincls-quickstart", "10pct": "semisup-quickstart"},
}
_FAMILIES = {"cifar10": "cifar10", "cifar100": "cifar100", "shapes": "quickstart", "digits": "quickstart"}
_SCRIPTS: dict[str, tuple[str, type[Classify]]] = {"lincls": ("lincls.py", Linear), "semisup": ("semisup.py", FineTune)}
_USUAL = ("knn", "linear", "1pct", "10pct")
_RANDOM = "random-"


@dataclass(frozen=True)
class _Step:
    """One measurement: what to call it, the recipe, and whether the weights are random."""

    name: str
    recipe: str
    is_knn: bool
    is_random: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam protocol`."""
    parser.add_argument("source", metavar="ENCODER", help="run folder, encoder file or any checkpoint")
    parser.add_argument("--data", default=os.environ.get("DATA", ""), help="as in training (default: $DATA)")
    parser.add_argument(
        "--run",
        dest="protocols",
        metavar="LIST",
        default="",
        help="of knn, linear, linear-sgd, 1pct, 10pct and names of lincls-* and semisup-* recipes; random-NAME is the "
        "same from random weights, which for 1pct and 10pct is the supervised baseline (default: what the family "
        "has of knn, linear, 1pct and 10pct)",
    )
    parser.add_argument(
        "--family",
        choices=_RECIPES,
        help="whose recipes the short names mean (default: by --data, a folder's: imagenet)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="a run folder for each (default: runs/protocol-NAME)")
    parser.add_argument("--ledger", metavar="FILE", help="where results are added (default: OUT/results.jsonl)")
    parser.add_argument("--encoder", metavar="NAME", help="name of the encoder, where the file does not say it")
    parser.add_argument("--ranks", type=int, default=0, help="processes (default: all GPUs, or one on CPU)")
    parser.add_argument("--seed", type=int, default=0, help="of every run (default %(default)s)")
    add_settings(parser, "for each training run: --settings --loader dali --epochs 10")


def run(arguments: argparse.Namespace) -> None:
    """Runs what the ledger does not hold yet, in the order asked for; an interrupted run goes on.

    Raises UserError, before anything runs, for a name that is no protocol, an encoder or data that cannot be read.
    """
    steps = _steps(arguments)
    configs = {step: _settings(step, arguments) for step in steps}
    import torch

    from simsiam.distributed.runtime import Runtime
    from simsiam.evaluation import ledger
    from simsiam.export.read import load_encoder

    encoder = load_encoder(arguments.source, name=arguments.encoder)
    ranks = arguments.ranks or torch.cuda.device_count() or 1
    runtime = Runtime(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(arguments.out or f"runs/protocol-{Path(arguments.source).resolve().stem}")
    book = Path(arguments.ledger or out / "results.jsonl")
    keys = {
        step: {
            "protocol": step.name,
            "config_sha256": ledger.config_hash(settings),
            "encoder_sha256": _sha256(encoder, step, arguments.seed),
            "data_sha256": _data_sha256(settings, runtime),
            "seed": arguments.seed,
        }
        for step, settings in configs.items()
    }
    measured = {}
    for step, settings in configs.items():
        key = keys[step]
        held = ledger.find(book, **key)
        if held is None:
            # Other settings, encoders or images are in other folders: what one holds is of this measurement.
            folder = out / f"{step.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}"
            measure = partial(_measure, step, arguments, encoder.encoder_name, folder, ranks)
            figures, hours = _timed(folder, measure)
            held = ledger.Result(
                **key, recipe=step.recipe, encoder="random" if step.is_random else arguments.source,
                encoder_name=encoder.encoder_name, data=settings.data, **figures,
                hardware=ledger.hardware(replace(runtime, world_size=ranks)), world_size=ranks,
                versions=ledger.versions(), hours=hours, finished=ledger.utc_now(), run=str(folder),
            )  # fmt: skip
            ledger.append(book, held)
        else:
            print(f"\n{step.name} is in {book} already, of {held.finished}", flush=True)
        measured[step] = held
    width = max(len(step.name) for step in steps)
    print(f"\n{'':<{width}}   top-1   top-5   hours")
    for step, result in measured.items():
        top5 = "" if result.top5 is None else f"{result.top5:.2f}"
        print(f"{step.name:<{width}}  {result.top1:6.2f}  {top5:>6}  {result.hours:6.2f}")
    print(f"\n{book}; `simsiam report {out}` shows it beside what is published")


def _steps(arguments: argparse.Namespace) -> list[_Step]:
    family = arguments.family or _family(arguments.data)
    recipes, steps = _RECIPES.get(family, {}), []
    asked = arguments.protocols or ",".join(name for name in _USUAL if name in recipes)
    for name in dict.fromkeys(filter(None, asked.split(","))):
        plain = name.removeprefix(_RANDOM)
        recipe = recipes.get(plain, plain)
        if plain not in recipes and not (plain in recipe_names() and plain.partition("-")[0] in _SCRIPTS):
            short = f"{', '.join(recipes)}, " if family else f"a --family ({', '.join(_RECIPES)}), "
            whose = f"the family {family}" if family else arguments.data
            raise UserError(
                f"--run names {name!r}, which is no protocol of {whose}; take {short}"
                "the name of a lincls-* or semisup-* recipe, or random-NAME"
            )
        steps.append(_Step(name, recipe, plain == "knn", name != plain))
    if not steps:
        raise UserError("--run names no protocol; take some of knn, linear, 1pct, 10pct, of a --family")
    return steps


def _family(data: str) -> str:
    """Whose recipes fit a set: a folder may be ImageNet's, and other built-in sets have none of their own."""
    from simsiam.data.datasets import BUILT_IN

    name = data.partition(":")[0]
    return _FAMILIES.get(name, "" if name in BUILT_IN else "imagenet")


def _settings(step: _Step, arguments: argparse.Namespace) -> Classify:
    """The settings that the step's command will find."""
    script, kind = _SCRIPTS[step.recipe.partition("-")[0]]
    words = ["--recipe", step.recipe, "--seed", str(arguments.seed)]
    words += ["--data", arguments.data] if arguments.data else []
    settings = parse(kind, [*words, *([] if step.is_knn else arguments.settings)], recipe=step.recipe, prog=script)
    if not settings.data:
        raise UserError("No dataset is given: set --data or DATA")
    # Of a recipe kNN takes the crop alone.
    return Linear(data=settings.data, views=settings.views, seed=settings.seed) if step.is_knn else settings


def _sha256(encoder: "nn.Module", step: _Step, seed: int) -> str:
    import torch

    from simsiam.export.write import encoder_hash
    from simsiam.models.encoders import build_encoder

    if not step.is_random:
        return encoder_hash(encoder)
    torch.manual_seed(seed)
    return encoder_hash(build_encoder(encoder.encoder_name))


def _data_sha256(settings: Classify, runtime: "Runtime") -> str:
    from simsiam.data.open import open_images
    from simsiam.evaluation.ledger import data_hash

    train = open_images(settings, "train", runtime)
    return data_hash(train, open_images(settings, "val", runtime, train.classes))


def _measure(step: _Step, arguments: argparse.Namespace, encoder_name: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Runs a step; top-1, top-5 and further figures, by name."""
    from simsiam.evaluation.ledger import knn_cell

    source = "random" if step.is_random else arguments.source
    named = ["--encoder", arguments.encoder or encoder_name]
    common = ["--recipe", step.recipe, *named, "--seed", arguments.seed, "--out", folder]
    common += ["--data", arguments.data] if arguments.data else []
    if step.is_knn:
        run_script("simsiam", "knn", source, *common, ranks=ranks)
        cells = json.loads((folder / "knn.json").read_text())["cells"]
        by_name = {knn_cell(cell["k"], cell["temperature"]): cell for cell in cells}
        monitors = by_name[knn_cell(200, 0.1)]
        figures = {name: cell["top1"] for name, cell in by_name.items()}
        return {"top1": monitors["top1"], "top5": monitors["top5"], "figures": figures}
    script, _ = _SCRIPTS[step.recipe.partition("-")[0]]
    run_script(script, "--pretrained", source, *common, *arguments.settings, ranks=ranks)
    summary = json.loads((folder / "summary.json").read_text())
    kept = (
        "chosen", "lr", "head_lr", "protocol", "train_images", "val_images", "val_skipped", "top1_best",
        "mean_per_class",
    )  # fmt: skip
    return {
        "top1": summary["top1"],
        "top5": summary["top5"],
        "figures": {name: summary[name] for name in kept if name in summary},
    }


def _timed(folder: Path, work: Callable[[], T]) -> tuple[T, float]:
    """The result of `work`, and its hours over all times that it was begun: kept in its folder, also if it fails."""
    file, began = folder / "hours.json", time.monotonic()
    before = json.loads(file.read_text()) if file.exists() else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return work(), before + (time.monotonic() - began) / 3600
    finally:
        file.write_text(f"{before + (time.monotonic() - began) / 3600}\n")
