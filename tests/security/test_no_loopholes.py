"""The code has no other way to read what it did not write: found by its syntax, not by its runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = [*ROOT.glob("*.py"), *(path for folder in ("simsiam", "transfer") for path in (ROOT / folder).rglob("*.py"))]
RUNS_CODE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.load_all", "yaml.safe_load", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"),
    *("shutil.unpack_archive", "tarfile.TarFile.extractall", "torch.package.PackageImporter"),
    "torch.distributed.checkpoint.FileSystemReader",
}
"""Whose names are not to be called; YAML is read by settings/plain_yaml.py, checkpoints by CheckedReader."""


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(`torch.load`, its node) of each call, under the name of what was imported, whatever it is called there."""
    nodes = list(ast.walk(ast.parse(source)))
    known = {"np": "numpy"}
    for node in nodes:
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield known.get(first, first) + dot + rest, node


def loopholes(source: str) -> list[str]:
    """The calls of some code that trust a file."""
    found = []
    for name, call in calls(source):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            name in RUNS_CODE
            or name.endswith((".extractall", ".extract_archive", ".load_state_dict_from_url"))
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "numpy.load" and given.get("allow_pickle") != "False")
            or given.get("shell") == "True"
        ):
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path):
    assert not loopholes(path.read_text())


def test_control():
    careless = [
        "torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)", "yaml.load(t, L)", "eval(t)",
        "tar.extractall(p)", "np.load(p)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)",
        "import torch.distributed.checkpoint as dcp; dcp.FileSystemReader(p)", "from pickle import loads; loads(b)",
        "from torch import load as read; read(p)", "import numpy as n; n.load(p)",
    ]  # fmt: skip
    assert len(SOURCES) > 150
    assert [len(loopholes(line)) for line in careless] == [1] * len(careless)
    assert not loopholes("torch.load(p, weights_only=True); model.eval(); np.load(p, allow_pickle=False)")
