"""Split batch norm is one ordinary batch norm a group of a view, on any number of ranks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from simsiam.distributed.collectives import rank, world_size
from simsiam.models.split_batchnorm import SplitBatchNorm, share_statistics, split_batchnorm
from tests.models.test_batchnorm import layer
from tests.ranks import run_ranks


def batch(dims: int, images: int = 16) -> Tensor:
    torch.manual_seed(1)
    scale = torch.arange(1, images + 1).view(-1, *[1] * (dims - 1))  # groups differ
    return torch.randn(images, 6, *[5] * (dims - 2)) * scale + scale


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dims", [2, 4])
def test_it_equals_a_forward_a_group(dims: int, layout: torch.memory_format, affine: bool) -> None:
    plain = layer(dims, affine)
    ours = SplitBatchNorm(copy.deepcopy(plain), 2, 4)
    x, exact = batch(dims), batch(dims).requires_grad_()
    x = (x.contiguous(memory_format=layout) if dims == 4 else x).requires_grad_()
    groups = [copy.deepcopy(plain) for _ in range(8)]
    y, expected = ours(x), torch.cat([norm(part) for norm, part in zip(groups, exact.chunk(8))])
    weight = torch.cos(torch.arange(y.numel()).float()).view_as(y)
    y.backward(weight)
    expected.backward(weight)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, exact.grad, atol=1e-5, rtol=1e-5)
    for p, parts in zip(ours.parameters(), zip(*(norm.parameters() for norm in groups)), strict=True):
        torch.testing.assert_close(p.grad, sum(part.grad for part in parts), atol=1e-4, rtol=1e-4)
    for name in ("running_mean", "running_var"):
        old, stats = getattr(plain, name), [getattr(norm, name) for norm in groups]
        # Each group's layer has moved a tenth of the way from the start to its own statistics.
        first, second = (old + 10 * (torch.stack(view).mean(0) - old) for view in (stats[:4], stats[4:]))
        torch.testing.assert_close(
            getattr(ours, name), 0.9 * (0.9 * old + 0.1 * first) + 0.1 * second, rtol=1e-4, atol=0
        )
    assert ours.num_batches_tracked == 2
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(batch(dims)), plain.eval()(batch(dims)))


def on_a_rank(x: Tensor, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    net = split_batchnorm(nn.Sequential(layer(4), nn.ReLU(), layer(4)), 2, 4)
    for _ in range(steps):
        views = [view.chunk(world_size())[rank()] for view in x.chunk(2)]
        y = net(torch.cat(views))
        share_statistics(net)
    return torch.stack(y.chunk(2)).detach(), net.state_dict()


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_gives_the_groups_of_one(ranks: int) -> None:
    x = batch(4)
    whole, state = on_a_rank(x, 3)
    parts = run_ranks(ranks, on_a_rank, x, 3)
    torch.testing.assert_close(torch.cat([y for y, _ in parts], dim=1), whole)
    for _, held in parts:
        for name, expected in state.items():
            torch.testing.assert_close(held[name], expected, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(held[name], parts[0][1][name])


def test_16_bit_images_keep_float32_statistics() -> None:
    ours = SplitBatchNorm(layer(4), 1, 4)
    x = batch(4).bfloat16()
    y = ours(x)
    assert y.dtype == torch.bfloat16
    assert ours.running_var.dtype == torch.float32
    expected = SplitBatchNorm(layer(4), 1, 4)(x.float())
    assert (y - expected).abs().max() < 0.05


def test_a_batch_that_is_not_whole_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 12 on 1 ranks is not 2 views of 4 groups"):
        SplitBatchNorm(layer(2), 2, 4)(batch(2, 12))
