"""Triton's kernels where there is no GPU: what they compute is seen, their speed is not."""

import os
import subprocess
import sys
from pathlib import Path


def interpreted(module: str, function: str) -> None:
    """Calls a function of a module of tests in a process of its own: Triton asks as it is imported who runs kernels."""
    program = f"from {module} import {function}; {function}(); print('equal')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr
