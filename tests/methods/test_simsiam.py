"""SimSiam is the paper's algorithm 1."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.registry import build_method, resolve_method
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm


def tiny_encoder() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    encoder.feature_dim = 8
    return encoder


def build(**options: object) -> SimSiam:
    torch.manual_seed(1)
    return SimSiam(tiny_encoder(), dim=16, predictor_hidden=4, **options)


def algorithm_1(model: SimSiam, x1: Tensor, x2: Tensor) -> Tensor:
    """The pseudocode, word by word, in the dtype of the model."""

    def f(x: Tensor) -> Tensor:
        h = model.encoder(x)
        return model.projector(h)

    def distance(p: Tensor, z: Tensor) -> Tensor:
        z = z.detach()
        return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(dim=1).mean()

    z1, z2 = f(x1), f(x2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    return distance(p1, z2) / 2 + distance(p2, z1) / 2


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, _: Tensor) -> None:
        return


def reference(model: SimSiam) -> SimSiam:
    model = copy.deepcopy(model)

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, ViewBatchNorm):
                norm = AnyBatchNorm(child.num_features, affine=child.weight is not None)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
            else:
                replace(child)

    replace(model)
    return model.double()


def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(12, 3, 8, 8), torch.randn(12, 3, 8, 8)


def test_loss_gradients_and_statistics_are_those_of_the_pseudocode() -> None:
    ours = build()
    exact = reference(ours)
    x1, x2 = views()
    loss = ours(x1, x2).loss
    loss.backward()
    expected = algorithm_1(exact, x1.double(), x2.double())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name
    for (name, b), c in zip(ours.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(b.double(), c.double(), atol=1e-5, rtol=1e-5, msg=name)


def test_no_gradient_reaches_the_targets() -> None:
    x1, x2 = views()
    ours, open_gate = build(), build(stop_gradient=False)
    z = ours(x1, x2).projections  # as constants
    fixed = build()
    targets = fixed.projector(fixed.encoder(torch.cat([x1, x2])))
    p1, p2 = fixed.predictor(targets).chunk(2)
    loss = -(F.normalize(p1, dim=1) * F.normalize(z[1], dim=1)).sum(1).mean() / 2
    loss = loss - (F.normalize(p2, dim=1) * F.normalize(z[0], dim=1)).sum(1).mean() / 2
    loss.backward()
    ours.zero_grad()
    ours(x1, x2).loss.backward()
    open_gate(x1, x2).loss.backward()
    grads = [[p.grad for p in m.projector.parameters()] for m in (ours, fixed, open_gate)]
    for mine, constant, leaking in zip(*grads, strict=True):
        torch.testing.assert_close(mine, constant, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(mine, leaking, atol=1e-4)


def test_views_may_come_apart_or_stacked() -> None:
    x1, x2 = views()
    assert torch.equal(build()(x1, x2).loss, build()(torch.stack([x1, x2])).loss)


def test_resnet50_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = SimSiam("resnet50")
    # 38,201,408 in the official model, whose projector has a frozen bias of 2,048 that batch norm cancels.
    assert sum(p.numel() for p in model.parameters()) == 38_201_408 - 2_048


def test_groups_hold_every_parameter_once() -> None:
    model = build()
    held = [id(p) for group in model.parameter_groups().values() for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "simsiam2"}, "'simsiam'"),
        ({"name": "simsiam", "stop_gradeint": False}, "'stop_gradient'"),
        ({"name": "simsiam", "dim": "wide"}, "type int"),
        ({"name": "simsiam", "dim": True}, "type int"),
    ],
)
def test_a_wrong_method_section_is_refused(section: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve_method(section)


def test_options_reach_the_method() -> None:
    model = build_method({"name": "simsiam", "dim": 32, "projector_layers": 2}, tiny_encoder())
    assert model.predictor[-1].out_features == 32
