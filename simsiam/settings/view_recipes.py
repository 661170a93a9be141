"""The recipe of every view of an image: a pure function of (settings, epoch), with its mistakes found before a run."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain, Run, Views

# One batch holds all views of a step, and one normalisation goes with the encoder: these stay as `views` says.
_COMMON = ("size", "resize", "mean", "std")
# All others with the largest value each may have; the smallest is 0, but a setting of two numbers must be above it.
_LARGEST = {
    **dict.fromkeys(("jitter", "gray", "blur", "solarize", "flip", "scale"), 1.0),
    **dict.fromkeys(("brightness", "contrast", "saturation", "ratio", "blur_sigma"), math.inf),
    "hue": 0.5,
}


def view_recipes(settings: Run, epoch: int, num_views: int) -> list[Views]:
    """The recipes of an image's views in an epoch, from 0: `num_views` of full size, and the small ones behind them.

    `views` is changed by the schedule's entry of the epoch, that by the branch of a view. Settings that have no
    branches, small views or schedule (those of every command but pretrain.py) give `views` for each view.
    """
    if not isinstance(settings, Pretrain):
        return [settings.views] * num_views
    entry = next((entry for entry in settings.views_schedule if epoch < entry["until"]), {})
    views = _changed(settings.views, {k: v for k, v in entry.items() if k not in ("until", "branches")})
    branches = entry.get("branches", settings.branches) or [{}] * num_views
    small = settings.small_views
    small_view = replace(views, size=small.size, scale=small.scale)
    return [*(_changed(views, branch) for branch in branches), *[small_view] * small.count]


def check_views(views: Views) -> None:
    """Raises UserError for a value that no view can be made with."""
    if views.size < 1:
        raise UserError(f"views.size {views.size} must be at least 1")
    if views.resize < views.size:
        raise UserError(
            f"views.resize {views.resize} is below views.size {views.size}, so a centre crop would leave the image; "
            f"give --views.resize {views.size} or more"
        )
    if not min(views.std) > 0:
        raise UserError(f"views.std {list(views.std)} must be three numbers above 0: pixels are divided by it")
    _check_range(views, "views.{}")


def check_view_recipes(settings: Pretrain, num_views: int, takes_small_views: bool) -> None:
    """Raises UserError where branches, small views or schedule are not what they can be.

    Args:
        num_views: views of full size that the method takes; takes_small_views: whether it takes small ones too.
    """
    method, small = settings.method.get("name"), settings.small_views
    check_views(settings.views)
    _check_branches(settings.branches, "branches", num_views, method)
    if small.count and not takes_small_views:
        raise UserError(
            f"small_views.count is {small.count}, but method {method!r} takes no small views; set it to 0 or take a "
            "method for multi-crop"
        )
    if small.count and not 1 <= small.size <= settings.views.size:
        raise UserError(f"small_views.size {small.size} must be between 1 and views.size {settings.views.size}")
    _check_schedule(settings, num_views, method)
    for epoch in (0, *(entry["until"] for entry in settings.views_schedule)):
        since = f" from epoch {epoch} on" if settings.views_schedule else ""
        for view, recipe in enumerate(view_recipes(settings, epoch, num_views), start=1):
            _check_range(recipe, "{} of " + (f"view {view}" if view <= num_views else "the small views") + since)


def _changed(views: Views, changes: Mapping[str, Any]) -> Views:
    # Tuples where YAML has lists: recipes are compared.
    return replace(views, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})


def _check_branches(branches: Any, where: str, num_views: int, method: str | None) -> None:
    if not isinstance(branches, list) or not all(isinstance(branch, Mapping) for branch in branches):
        raise UserError(f"{where} must be a list of mappings, one for each view, got {branches!r}")
    if branches and len(branches) != num_views:
        raise UserError(
            f"{where} lists {len(branches)} view(s), but method {method!r} takes {num_views}; give one mapping for "
            "each view ({} changes nothing), or an empty list"
        )
    for view, branch in enumerate(branches, start=1):
        _check_changes(branch, f"view {view} of {where}", ())


def _check_schedule(settings: Pretrain, num_views: int, method: str | None) -> None:
    before = 0
    for number, entry in enumerate(settings.views_schedule, start=1):
        where = f"entry {number} of views_schedule"
        until = entry.get("until")
        if not isinstance(until, int) or isinstance(until, bool) or until <= before:
            told = "has no `until`" if until is None else f"has until: {until!r}"
            raise UserError(f"{where} {told}; write the epoch it holds until, a whole number above {before}")
        before = until
        changes = {key: value for key, value in entry.items() if key not in ("until", "branches")}
        _check_changes(changes, where, ("until", "branches"))
        if "branches" in entry:
            _check_branches(entry["branches"], f"branches of {where}", num_views, method)
        elif settings.branches and not settings.small_views.count:
            hidden = [key for key in changes if all(key in branch for branch in settings.branches)]
            if hidden:
                raise UserError(
                    f"{where} sets {hidden[0]!r}, but so does every branch, which comes last; give the entry "
                    "`branches` of its own"
                )


def _check_changes(changes: Mapping[str, Any], where: str, others: tuple[str, ...]) -> None:
    """Raises UserError unless all are settings of a view that may change, with values of their types."""
    for key, value in changes.items():
        if key in _COMMON:
            raise UserError(f"{where} sets {key!r}, which is the same for all views and epochs; set views.{key}")
        if key not in _LARGEST:
            near = difflib.get_close_matches(str(key), (*_LARGEST, *others), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join((*_LARGEST, *others))}"
            raise UserError(f"{where} has no setting {key!r}; {hint}")
        pair = isinstance(getattr(Views, key), tuple)
        numbers = value if pair and isinstance(value, (list, tuple)) and len(value) == 2 else [value]
        if pair is not (numbers is value) or not all(_is_number(n) for n in numbers):
            raise UserError(f"{where} sets {key} to {value!r}, which must be {'two numbers' if pair else 'a number'}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_range(views: Views, named: str) -> None:
    """Raises UserError for a value that no view can be made with; `named` has {} for the setting."""
    for key, largest in _LARGEST.items():
        value, name = getattr(views, key), named.format(key)
        limit = "" if largest == math.inf else f" and at most {largest:g}"
        if isinstance(value, tuple):
            low, high = value
            if not 0 < low <= high <= largest or high == math.inf:
                raise UserError(f"{name} is [{low:g}, {high:g}]; write two numbers, the smaller first, above 0{limit}")
        elif not 0 <= value <= largest or value == math.inf:
            raise UserError(f"{name} is {value:g}; it must be at least 0{limit}")
