"""What a compiler is given of per-view batch-norm is the same batch-norm, in one graph, on any number of ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.models.fusible_batchnorm import normalise
from simsiam.training.compiling import compile_parts
from tests.ranks import run_ranks


def stepped(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Loss, gradients, and buffers after a step forth and back."""
    loss = model(inputs).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients, *(buffer.clone() for buffer in model.buffers())]


def compiled_beside_eager() -> tuple[int, list[Tensor], list[Tensor]]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch._dynamo.reset()  # a rank is forked from a process that may have compiled for one rank
    torch.manual_seed(0)
    eager = SimSiam("resnet8", dim=16, projector_hidden=16, predictor_hidden=8).to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(eager)
    views = torch.randn(2, 8 * ranks, 3, 16, 16).chunk(ranks, dim=1)[rank]
    parts = compile_parts(compiled, backend="aot_eager", fullgraph=True)
    return parts, stepped(eager, views), stepped(compiled, views)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_compiled_step_is_the_eager_one_without_a_break_in_a_graph(ranks: int) -> None:
    answers = run_ranks(ranks, compiled_beside_eager) if ranks > 1 else [compiled_beside_eager()]
    for parts, eager, compiled in answers:
        assert parts == 3 + 2  # blocks and heads
        for a, b in zip(eager, compiled, strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_has_its_gradient_in_any_type(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = torch.randn(16, 6, 5, 5).to(dtype), torch.rand(6) + 0.5, torch.randn(6)
    weighting, answers = torch.randn(16, 6, 5, 5).to(dtype), []
    for function in (normalise, torch.compile(normalise, backend="aot_eager", fullgraph=True)):
        given = [value.clone().requires_grad_() for value in inputs]
        y = function(*given, 2, 1e-5, 1)[0]
        y.backward(weighting)
        answers.append([y.detach(), *(value.grad for value in given)])
    torch.testing.assert_close(answers[1], answers[0])
    assert all(gradient.abs().max() > 0 for gradient in answers[1][1:])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_other_one(affine: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = ViewBatchNorm(nn.BatchNorm2d(6, affine=affine), 2)
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    norm.to(torch.promote_types(dtype, torch.float32))
    x = (torch.randn(16, 6, 5, 5) * 3 + 1).to(dtype).requires_grad_()
    by_hand = x.detach().clone().requires_grad_()
    weighting = torch.cos(torch.arange(x.numel()).float()).view_as(x).to(dtype)
    y = norm(x)
    z = normalise(by_hand, norm.weight, norm.bias, 2, norm.eps, 1)[0]
    y.backward(weighting)
    z.backward(weighting)
    error = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(z, y, atol=error, rtol=error)
    torch.testing.assert_close(by_hand.grad, x.grad, atol=error, rtol=error)
