"""Defaults < recipe < command line, with an error that names the nearest known key."""

import difflib
import os
import re
import sys
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

from simsiam.errors import UserError
from simsiam.settings.effects import FACTS
from simsiam.settings.foreign import FOREIGN
from simsiam.settings.limits import check_limits
from simsiam.settings.plain_yaml import plain_yaml
from simsiam.settings.tree import Job

S = TypeVar("S", bound=Job)

_DEFAULT_METHOD = "simsiam"
_OTHER_NAMES = {"--method": "--method.name", "--evaluate": "--evaluate_only"}


def recipe_names() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("simsiam.recipes").iterdir() if p.name.endswith(".yaml")
    )


def find_recipe(name_or_file: str) -> Path:
    """Path of a recipe given by name or by file. Raises UserError with the nearest names."""
    path = Path(name_or_file)
    if path.is_file():
        return path
    named = _packaged(name_or_file)
    if named.is_file():
        return named
    near = difflib.get_close_matches(name_or_file, recipe_names(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `simsiam recipes` for their names"
    raise UserError(f"No recipe or file is called {name_or_file!r}; {hint}")


def _packaged(name: str) -> Path:
    return Path(str(resources.files("simsiam.recipes") / f"{name}.yaml"))


def _check_script(path: Path, prog: str) -> None:
    """Raises UserError for a recipe of the package that is another script's, which its comment names."""
    script = Path(prog.partition(" ")[0]).name
    if path != _packaged(path.stem) or not script.endswith(".py"):
        return
    named = re.findall(r"^#   .*?([\w/]+\.py) ", path.read_text(), re.MULTILINE)
    if named and script not in [Path(name).name for name in named]:
        raise UserError(f"The recipe {path.stem} is for {named[0]}, not for {script}; `simsiam recipes` lists them all")


def parse(kind: type[S], argv: list[str] | None = None, *, recipe: str, prog: str) -> S:
    """Settings of one training command.

    Args:
        kind: the dataclass of the command's settings.
        argv: the command line; `sys.argv[1:]` by default.
        recipe: the recipe taken where the command line names none.
        prog: the command's name in help and messages.

    Raises:
        UserError: an unknown recipe or key, and a value that it cannot have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keys = setting_types(kind)
    known = list(keys)
    name, words = _take_recipe(_words(argv, keys), recipe)
    _check_words(words, known, prog)
    path = find_recipe(name)
    _check_script(path, prog)
    content = _read_file(path, known)
    parser = _parser(kind, prog, recipe)
    try:
        parsed = parser.parse_args(["--recipe", str(path), *words])
    except ArgumentError as error:
        raise UserError(f"{prog}: {_in_words(str(error))}") from None
    parsed.pop("recipe", None)
    settings = parser.instantiate(parsed)
    settings = kind(**{f.name: settings[f.name] for f in fields(kind)})
    if "method" in known:
        settings = replace(settings, method=_own_options(settings.method, content.get("method", {}), words))
    settings = replace(
        settings,
        data=settings.data or os.environ.get("DATA", ""),
        out=settings.out or str(Path(os.environ.get("LOG", "runs")) / path.stem),
    )
    _check_admitted(settings.allow_change, known)
    settings = settings.debugged(int(os.environ.get("WORLD_SIZE", 1))) if settings.debug else settings
    check_limits(settings)
    return settings


@cache  # making it, which reads every docstring, takes most of the time of a parse
def _parser(kind: type[Job], prog: str, recipe: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog, exit_on_error=False, description=f"Keys may be written with - or _. Default recipe: {recipe}."
    )
    parser.add_argument(
        "-c", "--recipe", action=ActionConfigFile, help="Recipe by name (`simsiam recipes`) or YAML file."
    )
    parser.add_class_arguments(kind)
    return parser


def setting_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a settings dataclass with its type; a section is a key too."""
    keys: dict[str, Any] = {}
    for f in fields(kind):
        keys[prefix + f.name] = f.type
        if is_dataclass(f.type):
            keys.update(setting_types(f.type, f"{prefix}{f.name}."))
    return keys


def _words(argv: list[str], keys: dict[str, Any]) -> list[str]:
    """The habits of other tools as jsonargparse's: kebab-case keys, bare switches, lists as A,B, `--method NAME`."""
    switches = {f"--{key}" for key, type_ in keys.items() if type_ is bool}
    lists = {f"--{key}" for key, type_ in keys.items() if _is_list(type_)}
    words: list[str] = []
    previous = ""
    for position, word in enumerate(argv):
        if not word.startswith("--"):
            words.append(_as_list(word) if previous in lists else word)
            previous = ""
            continue
        key, equals, value = word.partition("=")
        key = key.replace("-", "_").replace("__", "--", 1)
        key = _OTHER_NAMES.get(key, key)
        following = argv[position + 1] if position + 1 < len(argv) else "--"
        if key in switches and not equals and following.lower() not in ("true", "false"):
            equals, value = "=", "true"
        if key in lists and equals:
            value = _as_list(value)
        words.append(key + equals + value)
        previous = "" if equals else key
    return words


def _is_list(type_: Any) -> bool:
    """Whether a setting is a list of words or numbers, which `A,B` can be."""
    return (
        type_ == list[str] or get_origin(type_) is tuple or any(get_origin(part) is tuple for part in get_args(type_))
    )


def _as_list(value: str) -> str:
    return value if value.lstrip().startswith("[") or value.strip() == "null" else f"[{value}]"


def _take_recipe(words: list[str], default: str) -> tuple[str, list[str]]:
    """The recipe apart from the rest, so that an override counts wherever it stands on the line."""
    name, rest = default, []
    iterator = iter(words)
    for word in iterator:
        if word in ("-c", "--recipe"):
            name = next(iterator, "")
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
        elif word.startswith("-c"):
            name = word.removeprefix("-c").removeprefix("=")
        else:
            rest.append(word)
    if not name:
        raise UserError("--recipe needs a name or a file; `simsiam recipes` lists the names")
    return name, rest


def _check_words(words: list[str], known: list[str], prog: str) -> None:
    # Here and not in argparse, which would also take the beginning of a key for the key.
    is_value = False
    for word in words:
        key, equals, _ = word.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if word.startswith("--"):
            if name not in (*known, "help", "print_config") and not name.startswith("method."):
                raise UserError(f"Unknown setting {name!r} for {prog}{_nearest(name, known)}")
            is_value = not equals and name not in ("help", "print_config")
        elif is_value or word == "-h":
            is_value = False
        elif word.startswith("-") and _has(known, FOREIGN.get(name, "")):
            raise UserError(f"{prog} knows no {word!r}; did you mean --{FOREIGN[name]}?")
        else:
            raise UserError(f"{prog} takes no {word!r} without the setting that it is for, as in --data {word}")


def _check_admitted(keys: list[str], known: list[str]) -> None:
    for key in (key.replace("-", "_") for key in keys):
        if key not in (*known, *FACTS) and not key.startswith("method."):
            raise UserError(f"--allow-change names {key!r}, which is no setting{_nearest(key, known)}")


_KINDS = {"<class 'float'>": "a number", "<class 'int'>": "a whole number", "<class 'str'>": "text, in quotes"}
_KINDS |= {"<class 'bool'>": "true or false", "<class 'dict'>": "a mapping, such as {KEY: VALUE}"}


def _in_words(error: str) -> str:
    """What jsonargparse says of a value, in the words of this page's reader."""
    error = " ".join(error.split())
    found = re.fullmatch(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)', error)
    if found is None:
        return error
    key, kind, value = found.groups()
    if choices := re.fullmatch(r"typing\.Literal\[(.+)\]", kind):
        kind = f"one of {choices[1]}"
    elif count := re.fullmatch(r"tuple with (\d+) elements?", kind):
        kind = f"{count[1]} values with commas between"
    return f"{key!r} must be {_KINDS.get(kind, kind)}, not {value}"


def _own_options(method: dict[str, Any], recipes: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The method's section; where the line names another method than the recipe, without what that one has not.

    Options of the recipe by the same name stay; those on the line all do, so that a mistake there is found.
    """
    name = str(method.get("name", _DEFAULT_METHOD))
    if name == recipes.get("name", _DEFAULT_METHOD):
        return method
    from simsiam.methods.registry import option_names  # imports torch, which would delay --help by seconds

    has, typed = option_names(name), {word.partition("=")[0] for word in words}
    return {
        key: value
        for key, value in method.items()
        if key == "name" or key in has or key not in recipes or f"--method.{key}" in typed
    }


def _read_file(path: Path, known: list[str]) -> dict[str, Any]:
    """What a recipe says. Raises UserError for what is no recipe, and for a key that is no setting."""
    try:
        content = plain_yaml(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path} is not YAML ({place}{what}); a recipe is a plain YAML file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; a recipe is a YAML file of `key: value` lines")
    for key, value in content.items():
        is_section = any(dotted.startswith(f"{key}.") for dotted in known) or key == "method"
        if is_section and not isinstance(value, dict):
            written = f"{{name: {value}}}" if key == "method" else "{name: value}"
            raise UserError(f"{key!r} in {path} is a section of settings, not {value!r}; write `{key}: {written}`")
        inner = [f"{key}.{k}" for k in value] if is_section else []
        for dotted in [str(key), *inner]:
            if dotted not in known and not dotted.startswith("method."):
                raise UserError(f"Unknown setting {dotted!r} in {path}{_nearest(dotted, known)}")
    return content


def _has(known: list[str], ours: str) -> bool:
    """Whether a command has the setting that a foreign name stands for."""
    key = ours.partition(" ")[0]
    return key in (*known, "recipe") or (key.startswith("method.") and "method" in known)


def _nearest(key: str, known: list[str]) -> str:
    theirs = FOREIGN.get(key, FOREIGN.get(key.rpartition(".")[2], ""))
    near = [theirs] if _has(known, theirs) else []
    near = near or [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "; see --help for the known ones"
