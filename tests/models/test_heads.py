import pytest
import torch
from torch import nn

from simsiam.models.heads import predictor, projector


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_heads_have_the_published_sizes():
    frozen_bias = 2048  # the official projector's last Linear has it, ours does not
    head, h = projector(2048, 2048, 2048), predictor(2048, 512)
    assert count(head) + frozen_bias == 12_593_152
    assert count(h) == 2_100_224
    assert 23_508_032 + count(head) + frozen_bias + count(h) == 38_201_408


def test_three_layer_projector_has_the_official_indices():
    head = projector(8, 8, 8)
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert all(head[i].bias is None for i in (0, 3, 6))
    assert [head[i].affine for i in (1, 4, 7)] == [True, True, False]


def test_predictor_has_a_bias_only_at_the_end():
    h = predictor(8, 2)
    assert [type(m) for m in h] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert h[0].bias is None
    assert h[3].bias is not None


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projection_is_standardised_whatever_the_layers(layers):
    head = projector(16, 32, 8, layers=layers)
    assert sum(isinstance(m, nn.Linear) for m in head) == layers
    z = head(torch.randn(64, 16))
    assert z.shape == (64, 8)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(8), atol=1e-2, rtol=0)
