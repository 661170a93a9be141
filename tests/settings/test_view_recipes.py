"""Which recipe each view of an epoch has, and the mistakes that end a run before it begins."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from simsiam.errors import UserError
from simsiam.methods.registry import method_class
from simsiam.settings import view_recipes as module
from simsiam.settings.parse import parse
from simsiam.settings.tree import Linear, Pretrain, SmallViews, Views
from simsiam.settings.view_recipes import check_view_recipes, view_recipes
from tests.conftest import ROOT

PLAIN = Views(size=32, resize=32)
SCHEDULE = [
    {"until": 2, "blur": 0.0, "scale": [0.5, 1.0]},
    {"until": 5, "gray": 1.0, "branches": [{"hue": 0.3}, {}]},
    {"until": 6, "branches": []},
]


def checked(num_views: int = 2, takes_small_views: bool = True, **settings: object) -> Pretrain:
    given = Pretrain(**{"views": PLAIN, **settings})
    check_view_recipes(given, num_views, takes_small_views)
    return given


@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_all_views_are_as_views_says_unless_told_otherwise(epoch: int, num_views: int) -> None:
    assert view_recipes(checked(num_views), epoch, num_views) == [PLAIN] * num_views
    assert view_recipes(Linear(views=PLAIN), epoch, num_views) == [PLAIN] * num_views


def test_a_branch_changes_its_own_view_alone() -> None:
    settings = checked(3, branches=[{}, {"blur": 0.1, "solarize": 0.2}, {"jitter": 0, "scale": [0.5, 0.6]}])
    expected = [PLAIN, replace(PLAIN, blur=0.1, solarize=0.2), replace(PLAIN, jitter=0, scale=(0.5, 0.6))]
    assert view_recipes(settings, 0, 3) == view_recipes(settings, 99, 3) == expected


def test_small_views_come_last_and_have_their_own_size_and_scale() -> None:
    small = SmallViews(count=4, size=16, scale=(0.1, 0.2))
    settings = checked(branches=[{"blur": 1.0}, {"blur": 0.0}], small_views=small, views_schedule=SCHEDULE[:1])
    early, late = (view_recipes(settings, epoch, 2) for epoch in (1, 2))
    assert [(v.size, v.blur, v.scale) for v in early[:2]] == [(32, 1.0, (0.5, 1.0)), (32, 0.0, (0.5, 1.0))]
    assert early[2:] == [replace(PLAIN, size=16, scale=(0.1, 0.2), blur=0.0)] * 4
    assert late[2:] == [replace(PLAIN, size=16, scale=(0.1, 0.2))] * 4


def test_entries_of_a_schedule_hold_in_turn_and_the_recipe_after_them() -> None:
    settings = checked(branches=[{}, {"solarize": 0.2}], views_schedule=SCHEDULE)
    first, gray = replace(PLAIN, blur=0.0, scale=(0.5, 1.0)), replace(PLAIN, gray=1.0)
    expected = {
        (0, 1): [first, replace(first, solarize=0.2)],
        (2, 3, 4): [replace(gray, hue=0.3), gray],
        (5,): [PLAIN, PLAIN],
        (6, 7, 800): [PLAIN, replace(PLAIN, solarize=0.2)],
    }
    for epochs, recipes in expected.items():
        for epoch in epochs:
            assert view_recipes(settings, epoch, 2) == recipes, epoch


def test_each_setting_of_a_view_is_common_or_has_its_limits() -> None:
    names = {f.name for f in fields(Views)}
    assert names == {*module._COMMON, *module._LARGEST}
    pairs = {name for name in names if isinstance(getattr(PLAIN, name), tuple) and name in module._LARGEST}
    assert pairs == {"scale", "ratio", "blur_sigma"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"branches": [{"blurr": 1.0}, {}]}, "view 1 of branches has no setting 'blurr'; did you mean 'blur'?"),
        ({"branches": [{}, {7: 1.0}]}, "view 2 of branches has no setting 7; known: .*solarize"),
        ({"branches": [{}, {"size": 16}]}, "view 2 of branches sets 'size', which is the same .*; set views.size"),
        ({"branches": [{}]}, r"branches lists 1 view\(s\), but method 'simsiam' takes 2; give one mapping for each"),
        ({"branches": [{}, {}, {}]}, r"branches lists 3 view\(s\), but method 'simsiam' takes 2"),
        ({"branches": [{}, None]}, "branches must be a list of mappings, one for each view, got"),
        ({"branches": [{}, {"blur": "1e-1"}]}, "view 2 of branches sets blur to '1e-1', which must be a number"),
        ({"branches": [{}, {"blur": True}]}, "which must be a number"),
        ({"branches": [{}, {"blur": [0.1, 0.2]}]}, "which must be a number"),
        ({"branches": [{}, {"scale": 0.5}]}, "view 2 of branches sets scale to 0.5, which must be two numbers"),
        ({"branches": [{}, {"scale": [0.1, 0.2, 0.3]}]}, "which must be two numbers"),
        ({"branches": [{}, {"blur": 1.5}]}, "blur of view 2 is 1.5; it must be at least 0 and at most 1"),
        ({"branches": [{}, {"blur_sigma": [2.0, 0.1]}]}, r"blur_sigma of view 2 is \[2, 0.1\]; .*smaller first, above"),
        ({"branches": [{}, {"blur_sigma": [0.0, 0.1]}]}, "the smaller first, above 0$"),
        ({"branches": [{"scale": [0.5, 1.5]}, {}]}, "scale of view 1 .* above 0 and at most 1"),
        ({"branches": [{"ratio": [0.5, float("inf")]}, {}]}, "ratio of view 1"),
        ({"views": replace(PLAIN, flip=-0.1)}, "views.flip is -0.1; it must be at least 0 and at most 1"),
        ({"views": replace(PLAIN, gray=float("nan"))}, "views.gray is nan"),
        ({"views": replace(PLAIN, hue=0.6)}, "views.hue is 0.6; it must be at least 0 and at most 0.5"),
        ({"views": replace(PLAIN, contrast=float("inf"))}, "views.contrast is inf; it must be at least 0$"),
        ({"views": replace(PLAIN, size=0)}, "views.size 0 must be at least 1"),
        ({"views": replace(PLAIN, std=(0.2, 0.0, 0.2))}, "views.std .* must be three numbers above 0"),
        ({"small_views": SmallViews(count=1)}, "small_views.size 96 must be between 1 and views.size 32"),
        ({"small_views": SmallViews(count=1, size=0)}, "small_views.size 0 must be between"),
        ({"small_views": SmallViews(1, 8, (0.0, 0.2))}, "scale of the small views is .* above 0 and at most 1"),
        ({"views_schedule": [{"blur": 0.0}]}, "entry 1 of views_schedule has no `until`; write .* above 0"),
        ({"views_schedule": [{"until": 0}]}, "entry 1 of views_schedule has until: 0"),
        ({"views_schedule": [{"until": 2.5}]}, "has until: 2.5; write the epoch .*, a whole number above 0"),
        ({"views_schedule": [{"until": True}]}, "has until: True"),
        ({"views_schedule": [{"until": 3}, {"until": 3}]}, "entry 2 of .* has until: 3; .* a whole number above 3"),
        ({"views_schedule": [{"until": 3, "untill": 4}]}, "has no setting 'untill'; did you mean 'until'"),
        ({"views_schedule": [{"until": 3, "mean": [0, 0, 0]}]}, "entry 1 .* sets 'mean', .* set views.mean"),
        ({"views_schedule": [{"until": 3, "gray": 2}]}, "gray of view 1 from epoch 0 on is 2"),
        ({"views_schedule": [{"until": 3}, {"until": 5, "gray": 2}]}, "gray of view 1 from epoch 3 on is 2"),
        ({"views_schedule": [{"until": 3, "branches": [{}]}]}, r"branches of entry 1 .* lists 1 view\(s\)"),
        ({"views_schedule": [{"until": 3, "branches": {}}]}, "branches of entry 1 of views_schedule must be a list"),
        (
            {"branches": [{"blur": 1}, {"blur": 0}], "views_schedule": [{"until": 3, "blur": 0.5}]},
            "entry 1 of views_schedule sets 'blur', but so does every branch, which comes last; give the entry",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        checked(**settings)
    assert "\n" not in str(refused.value)


def test_small_views_are_refused_where_the_method_takes_none() -> None:
    with pytest.raises(UserError, match="count is 6, but method 'simsiam' takes no small views; set it to 0"):
        checked(takes_small_views=False, small_views=SmallViews(count=6, size=16))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--branches", "[{blurr: 1.0}, {}]"), "view 1 of branches has no setting 'blurr'; did you mean 'blur'?"),
        (("--views-schedule", "[{until: 0}]"), "entry 1 of views_schedule has until: 0"),
        (("--views-schedule", "[3]"), "views_schedule"),
        (("--small-views.count", 2, "--small-views.size", 16), "method 'simsiam' takes no small views"),
        (("--small-views.cuont", 2), "Unknown setting 'small_views.cuont'"),
        (("--views.blur", 1.5), "views.blur is 1.5"),
    ],
)
def test_a_mistake_ends_the_command_before_any_work(
    call: Callable[..., int], capsys: pytest.CaptureFixture, tmp_path: Path, words: tuple, says: str
) -> None:
    data = ("--data", tmp_path / "there is none", "--out", tmp_path / "run")  # not even looked for
    assert call("pretrain.py", "--recipe", "quickstart", *data, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "run/config.yaml").exists()


def test_the_warm_up_recipe_is_cifar10_r18_after_ten_epochs_of_another_jitter() -> None:
    warm, plain = (parse(Pretrain, [], recipe=f"cifar10-r18{end}", prog="x") for end in ("-moco-warmup", ""))
    check_view_recipes(warm, 2, takes_small_views=False)
    for epoch in (0, 9):
        assert view_recipes(warm, epoch, 2) == [replace(plain.views, jitter=1.0, hue=0.4)] * 2
    assert view_recipes(warm, 10, 2) == [plain.views] * 2
    assert replace(warm, views_schedule=[], out=plain.out) == plain


PAGE = (ROOT / "docs/views.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_examples_of_the_page_run(block: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block)
    settings = parse(Pretrain, [], recipe=str(tmp_path / "mine.yaml"), prog="pretrain.py")
    method = method_class(settings.method["name"])
    check_view_recipes(settings, method.num_views, method.takes_small_views)
    assert len({*view_recipes(settings, 10, method.num_views)}) > 1  # each of them makes views differ


def test_the_page_lists_every_setting_with_its_default() -> None:
    listed = {
        key: yaml.safe_load(value) for key, value in re.findall(r"^\| `([\w.]+)` \| (.*?) \|", PAGE, re.MULTILINE)
    }
    plain = Pretrain()
    expected = {
        f"{section}.{f.name}": getattr(getattr(plain, section), f.name)
        for section in ("views", "small_views")
        for f in fields(getattr(plain, section))
    }
    expected |= {"branches": plain.branches, "views_schedule": plain.views_schedule}
    assert listed.keys() == expected.keys()
    for key, value in expected.items():
        assert listed[key] == pytest.approx(list(value) if isinstance(value, tuple) else value, abs=1e-4), key
