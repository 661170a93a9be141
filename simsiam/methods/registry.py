"""From the recipe's `method` section to a method, its options checked against the class's signature."""

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
import types
import typing
from pathlib import Path
from typing import Any

from torch import nn

from simsiam.errors import UserError
from simsiam.methods.base import Method

# Name -> "module:Class", one line each; a module is imported when its method is asked for.
METHODS: dict[str, str] = {
    "simsiam": "simsiam.methods.simsiam:SimSiam",
    "simsiam-alternating": "simsiam.methods.simsiam_alternating:AlternatingSimSiam",
    "simsiam-moving-average": "simsiam.methods.simsiam_moving_average:MovingAverageSimSiam",
    "simsiam-kd": "simsiam.methods.distillation:SimSiamKD",
    "simsiam-kd-anchor": "simsiam.methods.distillation:SimSiamKDAnchor",
    "simclr": "simsiam.methods.simclr:SimCLR",
    "moco": "simsiam.methods.moco:MoCo",
    "byol": "simsiam.methods.byol:BYOL",
    "swav": "simsiam.methods.swav:SwAV",
    "adv": "simsiam.methods.adversarial:Adversarial",
    "adv-mmd": "simsiam.methods.adversarial:AdversarialMMD",
    "joint": "simsiam.methods.joint:Joint",
    "e2e-baseline": "simsiam.methods.joint:RatioOnly",
    "no-sg": "simsiam.methods.no_sg:TwoNetworks",
    "no-sg-alt": "simsiam.methods.no_sg:AlternatingTwoNetworks",
}


def resolve_method(section: dict[str, Any]) -> dict[str, Any]:
    """The section with every option of its method filled in.

    Its `name` is one of METHODS, or `path/to/file.py:Class` for a user's own. Options are the keyword arguments of the
    class; where its `__init__` takes `**options`, those of its base class as well. Raises UserError for an unknown
    method, an unknown or a missing option, and a value that does not fit the option's annotation.
    """
    name = str(section.get("name", "simsiam"))
    known = _options(method_class(name))
    given = {key: value for key, value in section.items() if key != "name"}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"Method {name!r} has no option {key!r}; {hint}")
    resolved = {"name": name}
    for key, (kind, default) in known.items():
        if key in given:
            value = given[key]
            if isinstance(value, list) and not _fits(value, kind):
                value = tuple(value)  # YAML knows no tuples
            if not (_fits(value, kind) or value is default is None):
                raise UserError(f"method.{key} of {name!r} must be {_describe(kind)}, got {given[key]!r}")
            resolved[key] = value
        elif default is inspect.Parameter.empty:
            raise UserError(f"Method {name!r} needs the option {key!r}: give --method.{key}, {_describe(kind)}")
        else:
            resolved[key] = default
    return resolved


def option_names(name: str) -> tuple[str, ...]:
    """The options of a method of this name. Raises UserError for an unknown one."""
    return tuple(_options(method_class(name)))


def build_method(section: dict[str, Any], encoder: str | nn.Module) -> Method:
    """The method of a recipe's section on an encoder given by name or as a module."""
    options = resolve_method(section)
    return method_class(options.pop("name"))(encoder, **options)


def method_class(name: str) -> type[Method]:
    """The class of one of METHODS, or of `path/to/file.py:Class`. Raises UserError."""
    if ".py" in name:
        return _own_class(name)
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        known = f"known: {', '.join(sorted(METHODS))}, or path/to/file.py:Class for your own"
        raise UserError(f"Unknown method {name!r}; {f'did you mean {near[0]!r}?' if near else known}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own_class(name: str) -> type[Method]:
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py") or not attribute:
        raise UserError(f"Method {name!r} names no class: write path/to/file.py:Class")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"Method {name!r}: there is no file {path}")
    module = _import(path)
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        here = [n for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__]
        raise UserError(f"Method {name!r}: {path} has no class {attribute!r}; it has {', '.join(here) or 'none'}")
    if not issubclass(found, Method):
        raise UserError(f"Method {name!r}: {attribute} must derive from simsiam.methods.base.Method")
    return found


@functools.cache
def _import(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_method_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        at = f", line {lines[-1]}" if lines else ""
        raise UserError(f"The method file {path} cannot be imported{at}: {type(error).__name__}: {error}") from error
    return module


def _options(cls: type[Method]) -> dict[str, tuple[Any, Any]]:
    """Option -> (annotation, default) of a class, `inspect.Parameter.empty` where there is none."""
    options: dict[str, tuple[Any, Any]] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            hints = typing.get_type_hints(base.__init__)
        except NameError:  # a name that only a type checker imports
            hints = {}
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        for p in parameters:
            if p.name != "encoder" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                kind = hints.get(p.name, Any if p.default in (None, p.empty) else type(p.default))
                options.setdefault(p.name, (kind, p.default))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is None or kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, origin or kind) if isinstance(origin or kind, type) else True


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return f"of type {kind.__name__ if isinstance(kind, type) else kind}"
