"""A method's section against the signature of its class, and classes from users' own files."""

from pathlib import Path

import pytest
from torch import nn

from simsiam.errors import UserError
from simsiam.methods.base import Method
from simsiam.methods.registry import METHODS, build_method, method_class, option_names, resolve_method
from simsiam.methods.simsiam_alternating import AlternatingSimSiam
from tests.methods.test_simsiam import tiny_encoder

OWN = """
from typing import Literal

from simsiam.methods.base import Method
from simsiam.methods.simsiam import SimSiam


class Mine(Method):
    def __init__(
        self, encoder, width: int, *, rate: float = 0.5, kind: Literal["a", "b"] = "a",
        sizes: tuple[int, ...] = (4,), pair: tuple[float, float] | None = None, plain=3, on: bool = False, any=None,
    ):
        super().__init__()
        self.encoder = encoder
        self.given = {"width": width, "rate": rate, "kind": kind, "sizes": sizes, "pair": pair, "plain": plain}


class Wider(SimSiam):
    def __init__(self, encoder, *, extra: int = 1, **options):
        super().__init__(encoder, **options)


class NoMethod:
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return str(path)


@pytest.mark.parametrize("name", METHODS)
def test_every_name_is_a_method_whose_options_are_described(name: str) -> None:
    cls = method_class(name)
    assert issubclass(cls, Method)
    said = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    assert [option for option in option_names(name) if option not in said] == []


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "simsiam2"}, "Unknown method 'simsiam2'; did you mean 'simsiam'"),
        ({"name": "zzzz"}, "known: adv, .*swav, or path/to/file.py:Class"),
        ({"name": "simsiam", "stop_gradeint": False}, "no option 'stop_gradeint'; did you mean 'stop_gradient'"),
        ({"name": "simsiam", "zzzz": 1}, "it has dim, projector_layers,"),
        ({"name": "simsiam", "dim": "wide"}, "method.dim of 'simsiam' must be of type int, got 'wide'"),
        ({"name": "simsiam", "dim": True}, "must be of type int"),
        ({"name": "simsiam", "dim": None}, "must be of type int"),
        ({"name": "simsiam", "stop_gradient": 0}, "must be of type bool"),
        ({"name": "simsiam", "predictor": "no"}, "must be one of 'trained', 'none', 'fixed', got 'no'"),
        ({"name": "simsiam-alternating", "alternate_steps": "year"}, "alternate_steps .* got 'year'"),
        ({"name": "simsiam-alternating", "alternate_steps": True}, "alternate_steps .* got True"),
        ({"name": "simsiam-kd"}, "needs the option 'teacher': give --method.teacher"),
    ],
)
def test_a_wrong_section_is_refused(section: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve_method(section)


def test_options_of_a_base_class_are_a_methods_own_where_it_takes_them() -> None:
    section = resolve_method({"name": "simsiam-alternating", "alternate_steps": "epoch", "batchnorm": "hidden"})
    assert (section["alternate_steps"], section["batchnorm"], section["dim"]) == ("epoch", "hidden", 2048)
    assert "predictor_hidden" in option_names("simsiam-alternating")
    assert "predictor_hidden" not in option_names("simsiam-moving-average")


def test_options_reach_the_method() -> None:
    model = build_method({"name": "simsiam", "dim": 32, "projector_layers": 2}, tiny_encoder())
    assert model.predictor[-1].out_features == 32
    alternating = build_method({"name": "simsiam-alternating", "dim": 8, "alternate_steps": 7}, tiny_encoder())
    assert type(alternating) is AlternatingSimSiam
    assert (alternating.alternate_steps, alternating.predictor[-1].out_features) == (7, 8)


def test_a_class_of_ones_own_has_its_signature_for_options(own: str) -> None:
    name = f"{own}:Mine"
    assert option_names(name) == ("width", "rate", "kind", "sizes", "pair", "plain", "on", "any")
    given = {"width": 5, "rate": 2, "sizes": [1, 2, 3], "pair": [0.5, 1]}
    method = build_method({"name": name, **given}, nn.Identity())
    assert method.given == {
        "width": 5, "rate": 2, "kind": "a", "sizes": (1, 2, 3), "pair": (0.5, 1), "plain": 3,
    }  # fmt: skip
    assert method_class(name) is type(method)  # read once
    assert option_names(f"{own}:Wider")[:2] == ("extra", "dim")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs the option 'width'"),
        ({"width": 1, "kind": "c"}, "one of 'a', 'b'"),
        ({"width": 1, "sizes": [1, "x"]}, "method.sizes .* got \\[1, 'x'\\]"),
        ({"width": 1, "pair": [1.0]}, "method.pair"),
        ({"width": 1, "plain": "x"}, "method.plain .* of type int"),
        ({"width": 1.5}, "method.width .* of type int"),
    ],
)
def test_options_of_ones_own_class_are_checked_alike(own: str, options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve_method({"name": f"{own}:Mine", **options})


@pytest.mark.parametrize(
    ("suffix", "says"),
    [
        ("", "names no class: write path/to/file.py:Class"),
        (":", "names no class"),
        (":Other", "has no class 'Other'; it has Mine, Wider, NoMethod"),
        (":OWN", "has no class 'OWN'"),
        (":NoMethod", "NoMethod must derive from simsiam.methods.base.Method"),
        ("x:Mine", "names no class"),
    ],
)
def test_a_name_that_leads_to_no_method_is_refused(own: str, suffix: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        method_class(own + suffix)
    with pytest.raises(UserError, match="there is no file .*gone.py"):
        method_class("gone.py:Mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nimport nothing_like_this\n", "line 2: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("x = 1\n\nclass Mine(:\n", "SyntaxError: .*broken.py, line 3"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=f"broken.py cannot be imported.*{says}"):
        method_class(f"{path}:Mine")
