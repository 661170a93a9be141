"""Exact batch-norm statistics are those of every number the layers see."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.detection.precise_bn import update_batchnorm_statistics
from simsiam.models.batchnorm import ViewBatchNorm, per_view_batchnorm
from tests.ranks import run_ranks

SIZES = ((4, 6), (3, 9), (2, 5))  # images, side in pixels


def batch(i: int) -> tuple[Tensor]:
    images, side = SIZES[i]
    generator = torch.Generator().manual_seed(i)
    return (torch.randn(images, 2, side, side, generator=generator) * (i + 1) + i,)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3))


def together(x: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all numbers of all batches, in float64."""
    rows = torch.cat([part.double().transpose(0, 1).flatten(1) for part in x], dim=1)
    return rows.mean(1), rows.var(1, correction=0)


def by_hand(model: nn.Module, batches: list[tuple[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same for both layers: the second sees what the first, with its batch's own statistics, hands on."""
    seen = [x for (x,) in batches]
    second = [model[1](nn.functional.batch_norm(x, None, None, model[0].weight, model[0].bias, True)) for x in seen]
    return [together(seen), together([x.detach() for x in second])]


def test_statistics_are_those_of_all_batches_together():
    model = network()
    batches = [batch(i) for i in range(3)]
    expected = by_hand(model, batches)
    update_batchnorm_statistics(model, batches, 3)
    for layer, (mean, var) in zip((model[0], model[2]), expected):
        torch.testing.assert_close(layer.running_mean, mean.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var, var.float(), rtol=1e-5, atol=1e-6)


def test_variance_is_fvcores_formula_from_the_statistics_of_batches():
    """fvcore reads unbiased variances out of the layers and undoes that; batches count by their size."""
    model, total, mean, square = network(), 0, torch.zeros(2), torch.zeros(2)
    for i in range(3):
        (x,) = batch(i)
        n = x.numel() // 2
        m, v = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)
        total += n
        mean = mean + (m - mean) * n / total
        square = square + (m**2 + v * (n - 1) / n - square) * n / total
    update_batchnorm_statistics(model, (batch(i) for i in range(3)), 3)
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, square - mean**2)


def test_nothing_else_changes_and_no_more_batches_are_taken_than_asked():
    model = network()
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" not in key}
    batches = iter([batch(0), batch(1), batch(2)])
    update_batchnorm_statistics(model, batches, 2)
    assert [m.training for m in model] == [True, True, False]
    assert [model[0].momentum, model[2].momentum] == [0.1, 0.3]
    assert not model[0]._forward_pre_hooks
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items() if "tracked" not in k)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(list(batches)) == 1


def test_too_few_batches_are_refused():
    model = network()
    with pytest.raises(ValueError, match="want 3 batches, and there were 2"):
        update_batchnorm_statistics(model, [batch(0), batch(1)], 3)
    assert model.training
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_sees_nothing_keeps_its_statistics():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x, targets):
            return self.used(x)

    model = Unused()
    model.idle.running_mean.fill_(7)
    update_batchnorm_statistics(model, [(batch(0)[0], None)], 1)
    assert torch.equal(model.idle.running_mean, torch.full((2,), 7.0))
    assert not torch.equal(model.used.running_mean, torch.zeros(2))


def on_a_rank() -> list[tuple[Tensor, Tensor]]:
    # Rank 0 has batches 0 and 2, rank 1 has 1 and 0: other sizes on each rank.
    model = per_view_batchnorm(network(), 1)
    update_batchnorm_statistics(model, [batch(i) for i in ((0, 2), (1, 0))[dist.get_rank()]], 2)
    assert isinstance(model[0], ViewBatchNorm)
    return [(layer.running_mean, layer.running_var) for layer in (model[0], model[2])]


def test_ranks_end_with_the_statistics_of_all_ranks():
    first, second = run_ranks(2, on_a_rank)
    for one, other in zip(first, second):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    mean, var = together([batch(i)[0] for i in (0, 2, 1, 0)])
    torch.testing.assert_close(first[0][0], mean.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[0][1], var.float(), rtol=1e-5, atol=1e-6)
