"""Who imports whom."""

import ast
from graphlib import TopologicalSorter

from tests.conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "simsiam").rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The project's modules that a module imports anywhere but for its type hints."""
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(MODULES[name].read_text()))
    return found & MODULES.keys() - {name}


def test_no_module_needs_itself_through_others() -> None:
    order = list(TopologicalSorter({name: imports(name) for name in MODULES}).static_order())
    assert order.index("simsiam.errors") < order.index("simsiam.training.step")


def test_no_file_is_past_400_lines() -> None:
    assert {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400} == set()
