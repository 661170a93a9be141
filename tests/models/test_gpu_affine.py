"""The kernel of batch-norm on GPUs, by Triton's interpreter: what it computes is seen on a CPU, its speed is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simsiam.gpu_kernels import gpu_kernels
from simsiam.models import batchnorm
from simsiam.models.batchnorm import ViewBatchNorm

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("way", ["beside_float64", "in_batchnorm"])
def test_one_pass_gives_what_several_do(way: str) -> None:
    program = f"from tests.models.interpreted import {way}; {way}(); print('equal')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("module", ["simsiam.models.gpu_affine", "simsiam.data.gpu_augment"])
def test_where_triton_makes_no_kernels_torchs_are_taken_with_a_warning(module: str) -> None:
    gpu_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"Triton makes no kernels here .*, so {module} gives way"):  # no GPU
            assert gpu_kernels(module) is None
    finally:
        gpu_kernels.cache_clear()


def test_cpus_and_float64_do_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "_gpu_affine", lambda: pytest.fail("asked for"))
    norm = ViewBatchNorm(torch.nn.BatchNorm2d(4), 2)
    for dtype in (torch.float32, torch.float64):
        norm.to(dtype)(torch.randn(4, 4, 3, 3, dtype=dtype, requires_grad=True)).sum().backward()
