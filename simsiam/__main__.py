"""`simsiam COMMAND`, for everything that is no training job."""

import argparse
from importlib import import_module

from simsiam.errors import ends_with_a_sentence

_COMMANDS = {
    "extract": "simsiam.commands.extract",
    "predict": "simsiam.commands.predict",
    "knn": "simsiam.commands.knn",
    "check-data": "simsiam.commands.check_data",
    "plan": "simsiam.commands.plan",
    "show-views": "simsiam.commands.show_views",
    "shards": "simsiam.commands.shards",
    "shapes": "simsiam.commands.shapes",
    "protocol": "simsiam.commands.protocol",
    "teacher": "simsiam.commands.teacher",
    "tables": "simsiam.commands.tables",
    "report": "simsiam.commands.report",
    "recipes": "simsiam.commands.recipes",
    "completion": "simsiam.commands.completion",
    "quickstart": "simsiam.commands.quickstart",
}


def make_parser() -> argparse.ArgumentParser:
    """A parser with every command: each is a module with HELP, add_arguments(parser) and run(arguments)."""
    parser = argparse.ArgumentParser(
        prog="simsiam", description="What goes with pretrain.py, lincls.py and semisup.py."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, path in _COMMANDS.items():
        module = import_module(path)
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


@ends_with_a_sentence
def main() -> None:
    """Runs one command."""
    arguments = make_parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
