"""`simsiam recipes`: the published settings by name."""

import argparse

from simsiam.settings.parse import find_recipe, recipe_names

HELP = "List the recipes, or print one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME prints a recipe whole."""
    parser.add_argument("name", nargs="?", help="recipe to print")


def run(arguments: argparse.Namespace) -> None:
    """Prints each recipe's name and the first line of its comment, or the file of one."""
    if arguments.name:
        print(find_recipe(arguments.name).read_text(), end="")
        return
    names = recipe_names()
    for name in names:
        first = find_recipe(name).read_text().splitlines()[0].lstrip("# ")
        print(f"{name:<{max(map(len, names))}}  {first}")
