"""Whether what goes on in a run folder is the run that began there: its settings, its data, its code, its machine."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simsiam.atomic import write_atomically
from simsiam.errors import UserError
from simsiam.settings.effects import FREE
from simsiam.settings.plain_yaml import plain_yaml
from simsiam.settings.tree import Job

_MOST_SHOWN = 6
_NONE = "not set"


class Change(NamedTuple):
    """A setting by its dotted key, in both runs; `not set` where one has none."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} was {_short(self.before)} and is {_short(self.after)}"


def changed_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every difference between two trees of settings, in the order of `now`; lists are compared whole."""
    before, after = dict(_leaves(earlier)), dict(_leaves(now))
    keys = {**after, **before}
    pairs = ((key, before.get(key, _NONE), after.get(key, _NONE)) for key in keys)
    return [Change(key, old, new) for key, old, new in pairs if old != new]


def check_unchanged(config: Path, settings: Job, allow: Sequence[str]) -> None:
    """Compares the settings with those that config.yaml holds of the run that is to go on.

    Args:
        config: path of config.yaml; none there is nothing to compare with.
        allow: keys that may differ; the name of a section stands for all in it.

    Raises:
        UserError: other settings differ, of those that change what is learned.
    """
    try:
        held = plain_yaml(config.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise UserError(
            f"{config} is damaged, so nothing tells whether these are the settings of the run in its folder; remove it "
            "to go on all the same, or give another --out"
        )
    # A setting that the run's version had not yet is held to have its default.
    defaults = asdict(type(settings)())
    now, allowed = asdict(settings), FREE | {key.replace("-", "_") for key in allow}
    changes = [c for c in changed_settings(_with_defaults(held, defaults), now) if not _is_within(c.key, allowed)]
    if not changes:
        return
    more = f" and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
    shown = changes[:_MOST_SHOWN]
    keys = "KEY,..." if more else ",".join(change.key for change in shown)
    # Weights of one encoder do not load into another.
    can_go_on = all(change.key != "encoder" for change in changes)
    remedy = f", or go on with the new ones by --allow-change {keys}" if can_go_on else ""
    told = f"{', '.join(map(str, shown))}{more}"
    raise UserError(f"{config.parent} holds a run with other settings ({told}); give another --out{remedy}")


def write_facts(folder: Path, facts: Mapping[str, str | int]) -> None:
    """Notes in facts.json what a run is computed from and with, by the names that the two functions below know."""
    write_atomically(folder / "facts.json", json.dumps(dict(facts), indent=2) + "\n")


def read_facts(folder: Path) -> dict[str, str | int]:
    """The facts of the run so far; none where the file is absent or damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in facts.items() if isinstance(v, (str, int))} if isinstance(facts, dict) else {}


# Name of a fact -> what `--allow-change` calls it, what it is, and a remedy.
_COUNTING = {
    "data_sha256": ("data", "other images (their names, order or labels)", "give the data it was trained on"),
    "code": ("code", "other code", "check out the code that it began with"),
    "bn_images": (
        "batchnorm",
        "another number of images for batch-norm statistics",
        "start as many ranks as before",
    ),
}


def check_facts(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any], allow: Sequence[str]) -> None:
    """Raises UserError where a fact that counts is another than in the run so far, and `allow` does not name it.

    These are `data_sha256`, the hash of the data (`data` in `allow`); `code`, of the package (`code`); and `bn_images`
    (`batchnorm`), for networks whose statistics are those of a rank. A fact that one side lacks is not compared.
    """
    for fact, (key, what, remedy) in _COUNTING.items():
        before, after = earlier.get(fact), now.get(fact)
        if None not in (before, after) and before != after and key not in allow:
            raise UserError(
                f"The run in {folder} began with {what} ({_short(before)}, now {_short(after)}); {remedy}, "
                f"give another --out, or go on all the same by --allow-change {key}"
            )


_ROUNDING = {
    "torch": "torch",
    "ranks": "number of ranks",
    "threads": "threads of a rank",
    "device": "device",
    "precision": "precision",
}


def rounding_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One sentence on what stays the same and what does not, where the run goes on with another machinery; else None.

    Looks at the facts `torch` (version), `ranks`, `threads` (of a rank), `device` (its type) and `precision` (as it was
    resolved).
    """
    pairs = [(name, earlier.get(fact), now.get(fact)) for fact, name in _ROUNDING.items()]
    changed = [f"{name} ({old} -> {new})" for name, old, new in pairs if None not in (old, new) and old != new]
    if not changed:
        return None
    return (
        f"The run goes on with another {' and '.join(changed)}: the order of samples and what is drawn for each view "
        "stay identical, rounding does not."
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _as_in_yaml(value)


def _as_in_yaml(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_in_yaml(item) for item in value]
    return {key: _as_in_yaml(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _with_defaults(held: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, and of what it lacks the defaults, of sections too; a method's options have none here."""
    whole = {**defaults, **held}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(whole[key], Mapping) and key != "method":
            whole[key] = _with_defaults(whole[key], default)
    return whole


def _is_within(key: str, sections: set[str] | frozenset[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in sections for length in range(1, len(parts) + 1))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
