"""`simsiam completion`: options and their values on the Tab key, in bash."""

import argparse
from typing import Any, Literal, get_args, get_origin

from simsiam.settings.detect import Detect
from simsiam.settings.parse import recipe_names, setting_types
from simsiam.settings.tree import FewShot, FineTune, Linear, Pretrain

HELP = "Print what completes options on the Tab key: simsiam completion > FILE, and `source FILE` in ~/.bashrc."
_SETTINGS = {
    "pretrain": (Pretrain,),
    "lincls": (Linear,),
    "semisup": (FineTune,),
    "classify": (Linear, FineTune, FewShot),
    "detect": (Detect,),
}
# `python` and `torchrun` stand before a script, `simsiam` before a command; elsewhere files are completed as ever.
_FUNCTION = r"""_simsiam() {
    local word="${COMP_WORDS[COMP_CWORD]}" option="${COMP_WORDS[COMP_CWORD - 1]}" of="" earlier words
    COMPREPLY=()
    for earlier in "${COMP_WORDS[@]:1:COMP_CWORD - 1}"; do
        earlier="${earlier##*/}"
        [ -z "$of" ] && [ -n "${_simsiam_words[${earlier%.py}]}" ] && of="${earlier%.py}"
    done
    case "${COMP_WORDS[0]##*/}" in
    *.py) of="${COMP_WORDS[0]##*/}" && of="${of%.py}" ;;
    simsiam) [ -z "$of" ] && of=simsiam ;;
    esac
    [ -z "$of" ] && return
    [ "$word" = "=" ] && word=""
    [ "$option" = "=" ] && option="${COMP_WORDS[COMP_CWORD - 2]}"
    words="${_simsiam_words[$of $option]}"
    [ -z "$words" ] && { [[ "$word" == -* ]] || [ "$of" = simsiam ]; } && words="${_simsiam_words[$of]}"
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o bashdefault -o default -F _simsiam simsiam python python3 torchrun pretrain.py lincls.py semisup.py
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> None:
    """Prints a table of words, and the function that looks them up."""
    from simsiam.__main__ import make_parser
    from simsiam.methods.registry import METHODS

    words = _words_of_commands(make_parser())
    for script, kinds in _SETTINGS.items():
        types = {name: type_ for kind in kinds for name, type_ in setting_types(kind).items()}
        values = {"--recipe": recipe_names(), **{f"--{name}": _values(type_) for name, type_ in types.items()}}
        if "method" in types:
            values |= {"--method": list(METHODS), "--method.name": list(METHODS)}
        words[script] = [*values, "--print_config", "--help"]
        words |= {f"{script} {option}": names for option, names in values.items() if names}
    print("declare -A _simsiam_words=(")
    for name, candidates in words.items():
        print(f"    ['{name}']='{' '.join(candidates)}'")
    print(f")\n{_FUNCTION}", end="")


def _words_of_commands(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The commands of `simsiam`, the options of each, and the values of an option where there are few."""
    words: dict[str, list[str]] = {}
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    words["simsiam"] = list(commands.choices)
    for name, command in commands.choices.items():
        words[name] = [option for action in command._actions for option in action.option_strings]
        for action in command._actions:
            for option in action.option_strings if action.choices else ():
                words[f"{name} {option}"] = [str(choice) for choice in action.choices]
        words |= {f"{name} --recipe": recipe_names()} if "--recipe" in words[name] else {}
    return words


def _values(type_: Any) -> list[str]:
    """What a setting may be, where that is a choice among words."""
    if type_ is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(type_)] if get_origin(type_) is Literal else []
