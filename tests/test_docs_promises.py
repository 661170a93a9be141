"""docs/reliability.md names tests: each of them is there."""

import ast
import re

from tests.conftest import ROOT


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 40
    for path, test in named:
        assert (ROOT / path).exists(), path
        if test:
            tree = ast.parse((ROOT / path).read_text())
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{test}"
