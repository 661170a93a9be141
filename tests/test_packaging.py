"""The wheel has all that a user runs: scripts, recipes, types."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from simsiam.settings.parse import recipe_names
from tests.conftest import ROOT


def test_the_wheel_has_scripts_recipes_and_types(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("setuptools here is older than what builds the wheel, and newer ones come from the network")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "pretrain.py", "lincls.py", "semisup.py"):
        shutil.copy(ROOT / name, source)
    for name in ("simsiam", "transfer"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"pretrain.py", "lincls.py", "semisup.py", "transfer/classify.py", "transfer/detect.py"} < held
    assert {f"simsiam/recipes/{name}.yaml" for name in recipe_names()} < held
    assert "simsiam/py.typed" in held
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "simsiam").rglob("*.py")}
    assert modules <= held
