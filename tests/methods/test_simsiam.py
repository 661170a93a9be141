"""SimSiam is the paper's algorithm 1, and each of its ablations what the paper says of it."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import ViewBatchNorm
from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.ranks import run_ranks

ABLATIONS = [
    {"predictor": "none"},
    {"predictor": "fixed"},
    {"batchnorm": "none"},
    {"batchnorm": "hidden"},
    {"batchnorm": "both", "output_affine": True},
    {"similarity": "cross_entropy"},
    {"symmetry": "asymmetric"},
    {"symmetry": "asymmetric_2x"},
    {"symmetry": "asymmetric", "predictor": "none"},
]
NAMES = [" ".join(f"{key} {value}" for key, value in options.items()) for options in ABLATIONS]


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


def cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(dim=1).mean()


def cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return -(F.softmax(z, dim=1) * torch.log(F.softmax(p, dim=1))).sum(dim=1).mean()


def algorithm_1(model: SimSiam, x1: Tensor, x2: Tensor, d: Callable = cosine) -> Tensor:
    """The pseudocode, word by word, in the dtype of the model."""

    def f(x: Tensor) -> Tensor:
        h = model.encoder(x)
        return model.projector(h)

    z1, z2 = f(x1), f(x2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    return d(p1, z2.detach()) / 2 + d(p2, z1.detach()) / 2


def one_way(model: SimSiam, x1: Tensor, x2: Tensor) -> Tensor:
    """Section 4.6: a pair of views, and the prediction from the first of them."""
    z1, z2 = model.projector(model.encoder(x1)), model.projector(model.encoder(x2))
    p1, _ = model.predictor(z1), model.predictor(z2)  # the second for the batch-norm statistics
    return cosine(p1, z2.detach())


def by_the_paper(model: SimSiam, options: dict, xs: tuple[Tensor, ...]) -> Tensor:
    if options.get("symmetry") == "asymmetric":
        return one_way(model, *xs)
    if options.get("symmetry") == "asymmetric_2x":
        return one_way(model, *xs[:2]) / 2 + one_way(model, *xs[2:]) / 2
    return algorithm_1(model, *xs, cross_entropy if "similarity" in options else cosine)


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


def views(count: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return tuple(torch.randn(12, 3, 8, 8) for _ in range(count))


@pytest.mark.parametrize("options", [{}, *ABLATIONS], ids=["as published", *NAMES])
def test_loss_gradients_and_statistics_are_those_of_the_pseudocode(options: dict) -> None:
    ours = build(**options)
    exact = reference(ours)
    xs = views(ours.num_views)
    loss = ours(*xs).loss
    loss.backward()
    expected = by_the_paper(exact, options, tuple(x.double() for x in xs))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name
        else:
            assert p.grad is None, name
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


@pytest.mark.parametrize(
    ("options", "projector", "predictor"),
    [
        ({"batchnorm": "none"}, "Lb R Lb R Lb", "Lb R Lb"),
        ({"batchnorm": "hidden"}, "L Na R L Na R Lb", "L Na R Lb"),
        ({}, "L Na R L Na R L N", "L Na R Lb"),
        ({"output_affine": True}, "L Na R L Na R L Na", "L Na R Lb"),
        ({"batchnorm": "both"}, "L Na R L Na R L N", "L Na R L Na"),
        ({"predictor": "none", "projector_layers": 2}, "L Na R L N", ""),
    ],
)
def test_heads_of_table_3(options: dict, projector: str, predictor: str) -> None:
    def layout(head: nn.Module) -> str:  # L or Lb with a bias, N or Na with scale and shift, R
        names = {nn.Linear: "L", ViewBatchNorm: "N", nn.ReLU: "R"}
        return " ".join(
            names[type(m)] + {"L": "b", "N": "a", "R": ""}[names[type(m)]] * (getattr(m, "bias", None) is not None)
            for m in head.children()
        )

    model = build(**options)
    assert (layout(model.projector), layout(model.predictor)) == (projector, predictor)


@pytest.mark.parametrize("predictor", ["trained", "none", "fixed"])
def test_groups_hold_every_trained_parameter_once(predictor: str) -> None:
    model = build(predictor=predictor)
    groups = model.parameter_groups()
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert ("predictor" in groups) is (predictor == "trained")


def test_a_fixed_predictor_stays_as_it_was_drawn_and_is_saved() -> None:
    state = start(build(predictor="fixed"), weight_decay=0.1)
    before = copy.deepcopy(state.module)
    go_on(state, [tuple(v.float() for v in batch) for batch in some_batches(2, (2, 8))])
    held = state.tensors()
    for name, drawn in before.named_parameters():
        stays = name.startswith("predictor.")
        assert torch.equal(drawn, held[f"model.{name}"]) is stays, name
        assert (f"optimizer.{name}.momentum_buffer" in held) is not stays, name
    same_draw = dict(build().named_parameters())
    assert all(torch.equal(p, same_draw[name]) for name, p in before.named_parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"predictor": "none", "batchnorm": "both"}, "batchnorm both is behind the predictor"),
        (
            {"batchnorm": "hidden", "output_affine": True},
            "output_affine needs .* output or both, not hidden",
        ),
    ],
)
def test_options_that_exclude_one_another_are_refused(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(**options)


def outcomes() -> list[tuple]:
    """Of all ablations, on the ranks there are."""
    results = []
    for options in ABLATIONS:
        count = 4 if options.get("symmetry") == "asymmetric_2x" else 2
        results.append(outcome(functools.partial(build, **options), some_batches(2, (count, 8))))
    return results


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    return outcomes()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_make_the_steps_of_one(ranks: int, alone: list[tuple]) -> None:
    for together in run_ranks(ranks, outcomes):
        for options, of_ranks, of_one in zip(ABLATIONS, together, alone, strict=True):
            assert of_one[1]["encoder.0.weight"].abs().max() > 1e-5, options
            assert_same(of_ranks, of_one, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"predictor": "none"}, {"predictor": "fixed", "batchnorm": "both"}])
def test_a_run_that_stops_goes_on_bit_equal(options: dict) -> None:
    make = functools.partial(build, **options)
    batches = [tuple(v.float() for v in batch) for batch in some_batches(6, (2, 8))]
    straight = start(make())
    go_on(straight, batches)
    for name, tensor in resumed(make, batches, 3).items():
        assert torch.equal(tensor, straight.tensors()[name]), name
