"""The kernels of views on GPUs, by Triton's interpreter: what they compute is seen on a CPU, their speed is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["of_everything", "of_each_by_itself", "of_several_recipes"])
def test_views_are_those_of_the_operations(what: str) -> None:
    program = f"from tests.data.interpreted_views import {what}; {what}(); print('equal')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr
