import itertools

import pytest
import torch
from torch import nn

from simsiam.errors import UserError
from simsiam.models.heads import mlp, predictor, projector


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


def layout(head):
    """Per layer: L or Lb (Linear, with bias), N or Na (batch-norm, affine), R (ReLU)."""
    names = {nn.Linear: "L", nn.BatchNorm1d: "N", nn.ReLU: "R"}
    marks = {nn.Linear: ("bias", "b"), nn.BatchNorm1d: ("weight", "a")}
    of = {kind: (lambda m, mark=marks[kind]: mark[1] if getattr(m, mark[0]) is not None else "") for kind in marks}
    return " ".join(names[type(m)] + of.get(type(m), lambda _: "")(m) for m in head)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "L Na R Lb"),
        ({"layers": 1}, "Lb"),
        ({"bias": False}, "L Na R L"),
        ({"bias": True, "output_norm": True}, "Lb Na R Lb Na"),
        ({"hidden_norm": False}, "Lb R Lb"),
        ({"layers": 3, "output_norm": True}, "L Na R L Na R L Na"),
        ({"layers": 3, "output_norm": True, "output_affine": False}, "L Na R L Na R L N"),
    ],
)
def test_mlp_has_norms_and_biases_where_asked(options, expected):
    head = mlp(6, 10, 4, **options)
    assert layout(head) == expected
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert linear[0].in_features == 6
    assert linear[-1].out_features == 4
    assert all(a.out_features == b.in_features == 10 for a, b in itertools.pairwise(linear))
    assert len({id(m) for m in head}) == len(head)
    assert head(torch.randn(5, 6)).shape == (5, 4)


def test_heads_of_no_layers_are_refused():
    for build in (mlp, projector):
        with pytest.raises(UserError, match="A head of 0 layers"):
            build(4, 4, 4, layers=0)


def test_heads_start_from_the_numbers_they_always_had():
    """The order in which layers draw their first weights is what makes a seed mean the same run."""
    torch.manual_seed(0)
    ours = [projector(6, 10, 4, layers=2), predictor(4, 3)]
    torch.manual_seed(0)
    plain = [nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False), nn.Linear(4, 3, bias=False), nn.Linear(3, 4)]
    expected = [t for layer in plain for t in layer.parameters()]
    got = [t for head in ours for m in head if isinstance(m, nn.Linear) for t in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
