"""On a GPU batch-norm passes once where torch's operations pass several times, and gives what float64 gives."""

import pytest
import torch
from torch import Tensor, nn

from simsiam.models import batchnorm
from simsiam.models.batchnorm import ViewBatchNorm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WITHIN = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def normalised(norm: ViewBatchNorm, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    norm.zero_grad()
    leaf = x.detach().clone().requires_grad_()
    y = norm(leaf)
    y.backward(grad.to(y.dtype))
    return tuple(t.double().cpu() for t in (y, leaf.grad, norm.weight.grad, norm.bias.grad))


def test_triton_makes_kernels_here() -> None:
    assert batchnorm._gpu_affine() is not None


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("shape", [(16, 64, 56, 56), (8, 48, 9, 9), (64, 2048, 7, 7), (64, 2048)])
def test_batchnorm_is_that_of_float64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple, dtype: torch.dtype, once: bool
) -> None:
    if not once:
        monkeypatch.setattr(batchnorm, "_passes_once", lambda *_: False)
    torch.manual_seed(0)
    norm = ViewBatchNorm((nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1]), 2).cuda()
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    x, grad = torch.randn(2, *shape, device="cuda").to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = normalised(norm, x, grad)
    expected = normalised(norm.double(), x.double(), grad.double())
    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).abs().max() <= WITHIN[dtype] * exact.abs().max()
