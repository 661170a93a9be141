"""`simsiam plan`: what a recipe takes on so many GPUs."""

import argparse

from simsiam.commands.scripts import add_settings
from simsiam.errors import UserError
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain

HELP = "hours, memory, and what limits a recipe on so many GPUs, from a few steps on one device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam plan`."""
    parser.add_argument("--recipe", default="imagenet-r50-100ep", metavar="NAME", help="default %(default)s")
    parser.add_argument("--gpus", type=int, default=8, help="of the whole job (default %(default)s)")
    parser.add_argument(
        "--data", default="", help="as in training; its loader is measured too (default: ImageNet's size)"
    )
    parser.add_argument(
        "--link", type=float, default=12.5, metavar="GB/S",
        help="what a GPU can send to the next one: 12.5 for 100 Gb/s Ethernet, 300 for NVLink (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default %(default)s")
    add_settings(parser, "for pretrain.py: --settings --batch-size 1024 --precision bf16")


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan, line by line as it is known.

    Raises UserError, before anything is measured, for a wrong setting or a batch that does not divide over the GPUs.
    """
    if arguments.gpus < 1 or arguments.steps < 1 or not arguments.link > 0:
        raise UserError("--gpus and --steps must be at least 1, and --link above 0")
    words = [*arguments.settings, "--device", arguments.device]
    words += ["--data", arguments.data] if arguments.data else []
    settings = parse(Pretrain, words, recipe=arguments.recipe, prog="pretrain.py")
    from simsiam.commands.forecast import plan
    from simsiam.distributed.runtime import running

    with running(settings.device, deterministic=settings.deterministic) as runtime:
        for title, text in plan(
            settings, arguments.gpus, arguments.link, arguments.steps, runtime, has_data=bool(arguments.data)
        ):
            print(f"{title:<10}  {text}", flush=True)
