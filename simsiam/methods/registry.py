"""From the recipe's `method` section to a method, its options checked against the class's signature."""

import difflib
import inspect
from typing import Any

from torch import nn

from simsiam.errors import UserError
from simsiam.methods.base import Method
from simsiam.methods.simsiam import SimSiam

METHODS: dict[str, type[Method]] = {"simsiam": SimSiam}


def resolve_method(section: dict[str, Any]) -> dict[str, Any]:
    """The section with every option of its method filled in. Raises UserError for an unknown method or option."""
    name = section.get("name", "simsiam")
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(METHODS))}"
        raise UserError(f"Unknown method {name!r}; {hint}")
    parameters = dict(inspect.signature(METHODS[name]).parameters)
    parameters.pop("encoder", None)
    options = {key: value for key, value in section.items() if key != "name"}
    for key, value in options.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(parameters)}"
            raise UserError(f"Method {name!r} has no option {key!r}; {hint}")
        kind = type(parameters[key].default)
        if not isinstance(value, (int, float) if kind is float else kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            raise UserError(f"method.{key} of {name!r} must be of type {kind.__name__}, got {value!r}")
    return {"name": name, **{key: p.default for key, p in parameters.items()}, **options}


def build_method(section: dict[str, Any], encoder: str | nn.Module) -> Method:
    """The method of a recipe's section on an encoder given by name or as a module."""
    options = resolve_method(section)
    return METHODS[options.pop("name")](encoder, **options)
