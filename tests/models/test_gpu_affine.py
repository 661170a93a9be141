"""The kernel of batch-norm on GPUs gives what torch's operations give."""

import pytest
import torch

from simsiam.models import batchnorm
from simsiam.models.batchnorm import ViewBatchNorm
from tests.triton_interpreter import interpreted


@pytest.mark.parametrize("way", ["beside_float64", "in_batchnorm"])
def test_one_pass_gives_what_several_do(way: str) -> None:
    pytest.importorskip("triton")
    interpreted("tests.models.interpreted_affine", way)


def test_cpus_and_float64_do_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "_gpu_affine", lambda: pytest.fail("asked for"))
    norm = ViewBatchNorm(torch.nn.BatchNorm2d(4), 2)
    for dtype in (torch.float32, torch.float64):
        norm.to(dtype)(torch.randn(4, 4, 3, 3, dtype=dtype, requires_grad=True)).sum().backward()
