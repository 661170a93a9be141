"""The slow network's rule, and that no gradient reaches it."""

import copy

import torch
from torch import nn

from simsiam.models.momentum import follow, momentum_copy


def test_it_follows_by_the_rule_and_takes_no_gradient() -> None:
    torch.manual_seed(0)
    fast = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = momentum_copy(fast)
    before = copy.deepcopy(slow)
    for parameter in fast.parameters():
        nn.init.normal_(parameter)
    fast(torch.randn(8, 3))
    follow(slow, fast, 0.9)
    for new, old, ahead in zip(slow.parameters(), before.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * ahead)
    assert torch.equal(slow[1].running_mean, before[1].running_mean)
    assert not any(parameter.requires_grad for parameter in slow.parameters())
