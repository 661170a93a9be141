"""A number that no run can have is refused as the command line is read, in a sentence with what it may be."""

from dataclasses import replace
from typing import Any

import pytest

from simsiam.errors import UserError
from simsiam.settings.detect import Detect
from simsiam.settings.limits import _LIMITS, check_limits
from simsiam.settings.parse import parse, setting_types
from simsiam.settings.tree import FewShot, FineTune, Linear, Pretrain, Run, Views

KINDS = (Pretrain, Linear, FineTune, FewShot, Detect)
# A verdict may be had at any threshold; views have limits of their own, which hold for branches too.
WITHOUT = ("health.", "views.", "small_views.")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--workers", "-1"), "--workers is -1; it must be at least 0"),
        (("--batch-size", "0"), "--batch-size is 0; it must be at least 1"),
        (("--epochs", "0"), "--epochs is 0; it must be at least 1"),
        (("--accumulate", "0"), "--accumulate is 0; it must be at least 1"),
        (("--max-steps", "-1"), "--max-steps is -1; it must be at least 0"),
        (("--profile", "-1"), "--profile is -1; it must be at least 0"),
        (("--hang-timeout", "-1"), "--hang-timeout is -1; it must be at least 0"),
        (("--hang-timeout", ".nan"), "--hang-timeout is nan; it must be at least 0"),
        (("--optim.momentum", "-1"), "--optim.momentum is -1; it must be at least 0 and at most 1"),
        (("--optim.lr", ".inf"), "--optim.lr is inf; it must be at least 0"),
        (("--optim.milestones", "[3,-1]"), "--optim.milestones is -1; it must be at least 0"),
        (("--optim.lr", "0", "--optim.final-lr", "1"), "--optim.final-lr is 1; give --optim.lr above 0"),
        (("--knn.k", "0"), "--knn.k is 0; it must be at least 1"),
        (("--knn.temperature", "0"), "--knn.temperature is 0; it must be above 0"),
        (("--checkpoint.keep", "0"), "--checkpoint.keep is 0; it must be at least 1"),
        (("--small-views.count", "-1"), "--small-views.count is -1; it must be at least 0"),
        (("--views.size", "0"), "views.size 0 must be at least 1"),
        (("--views.blur", "2"), "views.blur is 2; it must be at least 0 and at most 1"),
        (("--max-wall-time", "5x"), "--max-wall-time '5x' is no time"),
    ],
)
def test_it_is_refused_where_the_command_line_is_read(option: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(Pretrain, list(option), recipe="quickstart", prog="pretrain.py")
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_within_the_limits(kind: type) -> None:
    check_limits(kind())


def test_views_of_every_command_are_looked_at() -> None:
    with pytest.raises(UserError, match=r"views.scale is \[0.9, 0.1\]"):
        check_limits(replace(Linear(), views=Views(scale=(0.9, 0.1))))


def test_every_number_has_its_limits_and_every_limit_its_setting() -> None:
    numbers = {key for kind in KINDS for key, type_ in setting_types(kind).items() if _is_number(type_)}
    assert {key for key in numbers if not key.startswith(WITHOUT)} <= _LIMITS.keys()
    assert _LIMITS.keys() <= numbers


def test_batch_size_1_and_no_limits_at_0_are_fine() -> None:
    check_limits(Run(batch_size=1, max_steps=0, workers=0, hang_timeout=0))


def _is_number(type_: Any) -> bool:
    """Of int, float, and tuples of them, optional or not."""
    inner = getattr(type_, "__args__", ())
    return type_ in (int, float) or any(_is_number(part) for part in inner)
