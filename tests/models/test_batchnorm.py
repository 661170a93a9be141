"""Per-view batch norm is one ordinary batch norm a view, over the images of all ranks."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from simsiam.models.batchnorm import ViewBatchNorm, per_view_batchnorm
from simsiam.models.split_batchnorm import split_batchnorm
from tests.ranks import run_ranks


def layer(dims: int, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = (nn.BatchNorm1d if dims == 2 else nn.BatchNorm2d)(6, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return norm


def batch(dims: int, images: int = 16, mean: float = 1.0) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(images, 6, *[5] * (dims - 2)) * 3 + mean


def separately(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two forwards, one a view, and the gradient of x under a fixed weighting."""
    x = x.clone().requires_grad_()
    y = torch.cat([norm(view) for view in x.chunk(2)])
    y.backward(torch.cos(torch.arange(y.numel()).float()).view_as(y))
    return y.detach(), x.grad


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dims", [2, 4])
def test_it_equals_a_forward_a_view(dims: int, layout: torch.memory_format, affine: bool) -> None:
    plain = layer(dims, affine)
    ours = ViewBatchNorm(copy.deepcopy(plain), 2)
    x = batch(dims)
    expected, expected_grad = separately(plain, x)
    x = x.contiguous(memory_format=layout) if dims == 4 else x
    x.requires_grad_()
    y = ours(x)
    y.backward(torch.cos(torch.arange(y.numel()).float()).view_as(y))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, expected_grad, atol=1e-5, rtol=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours_p.grad, plain_p.grad, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.eval()(batch(dims)), ours.eval()(batch(dims)))
    torch.testing.assert_close(ours.eval()(batch(dims)), plain.eval()(batch(dims)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_epsilon_is_that_of_the_layer(training: bool) -> None:
    plain = nn.BatchNorm2d(6, eps=0.5).train(training)
    ours = ViewBatchNorm(copy.deepcopy(plain), 1).train(training)
    torch.testing.assert_close(ours(batch(4)), plain(batch(4)), atol=1e-5, rtol=1e-5)


def test_views_do_not_share_statistics() -> None:
    x = batch(4)
    x[8:] += 100
    assert ViewBatchNorm(layer(4, affine=False), 2)(x).chunk(2)[1].mean().abs() < 1e-4


def test_a_large_mean_costs_no_precision() -> None:
    plain, x = layer(4), batch(4, mean=1000.0)
    y = ViewBatchNorm(copy.deepcopy(plain), 2)(x)
    exact = torch.cat([copy.deepcopy(plain).double()(view) for view in x.double().chunk(2)])
    assert (y - exact).abs().max() < 2e-3


@pytest.mark.parametrize("shape", [(64, 6, 48, 48), (6, 6, 53, 31), (2 * 1031, 6), (2 * 4096, 6), (2 * 1031, 6, 1, 1)])
def test_many_numbers_cost_no_precision(shape: tuple[int, ...]) -> None:
    plain = layer(min(len(shape), 4))
    ours, exact = ViewBatchNorm(copy.deepcopy(plain), 2), copy.deepcopy(plain).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) + 0.3
    weighting = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    images = x.double().requires_grad_()
    expected = torch.cat([exact(view) for view in images.chunk(2)])
    expected.backward(weighting.double())
    x.requires_grad_()
    y = ours(x)
    y.backward(weighting)
    assert (y - expected).abs().max() < 2e-6
    assert (x.grad - images.grad).abs().max() < 2e-6
    assert (ours.running_var / exact.running_var - 1).abs().max() < 1e-6
    # A sum of so many random numbers is as large as the root of how many there are.
    for found, right in zip(ours.parameters(), exact.parameters(), strict=True):
        assert (found.grad - right.grad).abs().max() < 2e-6 * x[:, 0].numel() ** 0.5


def test_bf16_keeps_float32_statistics() -> None:
    plain, x = layer(4), batch(4, images=64).bfloat16()
    ours = ViewBatchNorm(copy.deepcopy(plain), 2)
    expected, expected_grad = separately(plain, x.float())
    x.requires_grad_()
    y = ours(x)
    y.backward(torch.cos(torch.arange(y.numel()).float()).view_as(y).bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y - expected).abs().max() < 0.05
    assert (x.grad - expected_grad).abs().max() < 0.02
    torch.testing.assert_close(ours.running_var, plain.running_var, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [2, 4])
def test_gradients_are_those_of_finite_differences_in_float64(dims: int, affine: bool) -> None:
    ours = ViewBatchNorm(layer(dims, affine), 2).double()
    x = batch(dims, images=6).double().requires_grad_()
    # Half of it: a function of the output's sum alone would have no gradient at all.
    assert torch.autograd.gradcheck(lambda x, *_: ours(x)[:, ::2].sin(), (x, *ours.parameters()))


def test_a_batch_that_is_no_whole_views_is_refused() -> None:
    with pytest.raises(ValueError, match="2 views"):
        ViewBatchNorm(layer(2), 2)(batch(2, images=7))


def on_a_rank(x: Tensor, weighting: Tensor, shares: tuple[int, ...], affine: bool) -> dict[str, object]:
    """This rank's images of both views through the layer; results, gradients, and collectives it took."""
    rank = dist.get_rank()
    first, last = sum(shares[:rank]), sum(shares[: rank + 1])
    mine, weights = (torch.cat([v[first:last] for v in t.chunk(2)]) for t in (x, weighting))
    calls: list[str] = []
    import simsiam.distributed.collectives as collectives

    gather, reduce = collectives._all_gather, dist.all_reduce
    collectives._all_gather = lambda *a: (calls.append("gather"), gather(*a))[1]
    dist.all_reduce = lambda *a: (calls.append("reduce"), reduce(*a))[1]
    norm = ViewBatchNorm(layer(x.dim(), affine), 2)
    mine.requires_grad_()
    y = norm(mine)
    y.backward(weights)
    collectives._all_gather, dist.all_reduce = gather, reduce
    dw = norm.weight.grad if affine else None
    return {"y": y.detach(), "dx": mine.grad, "dw": dw, "state": norm.state_dict(), "calls": calls}


@pytest.mark.parametrize(("shares", "affine"), [((4, 4), True), ((3, 5), False), ((2, 1, 5), True)])
def test_ranks_of_any_sizes_equal_one(shares: tuple[int, ...], affine: bool) -> None:
    x = batch(4)
    weighting = torch.cos(torch.arange(x.numel()).float()).view_as(x)
    plain = layer(4, affine)
    expected, expected_grad = separately(plain, x)
    results = run_ranks(len(shares), on_a_rank, x, weighting, shares, affine)
    for key, whole in (("y", expected), ("dx", expected_grad)):
        parts = [torch.cat([r[key].chunk(2)[view] for r in results]) for view in range(2)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
    if affine:
        torch.testing.assert_close(sum(r["dw"] for r in results), plain.weight.grad, atol=1e-4, rtol=1e-4)
    for result in results:
        assert result["calls"] == ["gather", "gather"]
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(result["state"][name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("replace", [lambda m: per_view_batchnorm(m, 2), lambda m: split_batchnorm(m, 2, 1)])
def test_the_activation_inside_timms_batchnorm_stays(replace: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6), nn.Conv2d(6, 4, 3), BatchNormAct2d(4, apply_act=False))
    ours = replace(copy.deepcopy(plain))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    views = torch.randn(2, 8, 3, 9, 9)
    for train in (True, False):
        expected = torch.cat([plain.train(train)(view) for view in views])
        torch.testing.assert_close(ours.train(train)(views.flatten(0, 1)), expected, atol=1e-5, rtol=1e-5)
