"""`simsiam teacher`: a supervised encoder for the distillation methods, which is semisup.py from random weights."""

import argparse
import json
import os
from pathlib import Path

from simsiam.commands.scripts import add_settings, run_script
from simsiam.errors import UserError
from simsiam.settings.parse import parse
from simsiam.settings.tree import FineTune

HELP = "train an encoder with all labels, for simsiam-kd and simsiam-kd-anchor to distil"

# Data -> encoder -> recipe; the first is taken where no encoder is named, or another one.
_RECIPES = {
    "cifar10": {"cifar_resnet18": "teacher-cifar10-r18"},
    "cifar100": {"resnet56": "teacher-cifar100-r56", "resnet110": "teacher-cifar100-r110"},
    "shapes": {"resnet8": "teacher-quickstart"},
    "digits": {"resnet8": "teacher-quickstart"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam teacher`."""
    parser.add_argument("--data", default="", help="as in training (default: the recipe's)")
    parser.add_argument("--encoder", metavar="NAME", help="encoder to train (default: the recipe's)")
    parser.add_argument("--recipe", metavar="NAME", help="recipe of semisup.py (default: by --data, teacher-*)")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/teacher-DATA-ENCODER)")
    parser.add_argument("--ranks", type=int, default=1, help="processes (default: one)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default %(default)s)")
    add_settings(parser, "for semisup.py: --settings --epochs 60 --download")


def run(arguments: argparse.Namespace) -> None:
    """Trains the teacher, or goes on where it was interrupted, and says how a student is taught by it.

    Raises UserError, before anything runs, for data without a recipe and for a wrong setting.
    """
    recipe = arguments.recipe or _recipe(arguments.data, arguments.encoder)
    words = ["--seed", str(arguments.seed)]
    words += ["--data", arguments.data] if arguments.data else []
    words += ["--encoder", arguments.encoder] if arguments.encoder else []
    settings = parse(FineTune, [*words, *arguments.settings], recipe=recipe, prog="semisup.py")
    folder = f"teacher-{Path(settings.data.partition(':')[0]).name}-{settings.encoder.replace(':', '-')}"
    out = arguments.out or str(Path(os.environ.get("LOG", "runs")) / folder)
    # Last, so that it holds whatever the settings say; a trial adds -debug to it.
    run_script("semisup.py", "--recipe", recipe, *words, *arguments.settings, "--out", out, ranks=arguments.ranks)
    out += "-debug" if settings.debug else ""
    top1 = json.loads((Path(out) / "summary.json").read_text())["top1"]
    print(f"\n{out}: top-1 {top1:.2f}%\nA student of it: pretrain.py --method simsiam-kd --method.teacher {out}")


def _recipe(data: str, encoder: str | None) -> str:
    recipes = _RECIPES.get(data.partition(":")[0])
    if recipes is None:
        raise UserError(
            f"There is no teacher's recipe for --data {data!r}; take {', '.join(_RECIPES)}, or give --recipe with the "
            "schedule for it"
        )
    return recipes.get(encoder, next(iter(recipes.values())))
