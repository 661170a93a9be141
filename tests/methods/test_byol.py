"""BYOL is the paper's section 3: loss, gradient, and a target that follows by the rule and in no other way."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.byol import BYOL
from simsiam.methods.registry import build_method
from simsiam.optim.build import build_optimizer
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain
from simsiam.settings.view_recipes import check_view_recipes, view_recipes
from simsiam.training.module import Moment
from tests.methods.stepping import (
    EPOCHS,
    STEPS_PER_EPOCH,
    assert_same,
    go_on,
    outcome,
    resumed,
    some_batches,
    start,
)
from tests.methods.test_simsiam import reference, tiny_encoder
from tests.ranks import run_ranks


def build() -> BYOL:
    torch.manual_seed(1)
    return BYOL(tiny_encoder(), dim=6, projector_hidden=16, predictor_hidden=12, momentum=0.9)


def batch() -> Tensor:
    return some_batches(1, (2, 8))[0][0]


def by_loops(model: BYOL, x1: Tensor, x2: Tensor) -> Tensor:
    """Equation 2 and its mirror image, a forward for each view, image by image."""

    def online(x: Tensor) -> Tensor:
        return model.predictor(model.projector(model.encoder(x)))

    def target(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model.target.projector(model.target.encoder(x))

    def distance(q: Tensor, z: Tensor) -> Tensor:
        per_image = []
        for a, b in zip(q, z):
            a, b = a / a.square().sum().sqrt(), b / b.square().sum().sqrt()
            per_image.append((a - b).square().sum())
        return sum(per_image) / len(per_image)

    q1, q2 = online(x1), online(x2)
    z1, z2 = target(x1), target(x2)
    return distance(q1, z2) + distance(q2, z1)


def apart() -> BYOL:
    """A method whose target is another network than its online one."""
    model = build()
    with torch.no_grad():
        for p in model.target.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def test_loss_gradients_and_statistics_are_those_of_the_paper() -> None:
    ours = apart()
    exact = reference(ours)
    views = batch()
    loss = ours(views.float()).loss
    loss.backward()
    expected = by_loops(exact, *views)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert 0 < loss.item() < 8
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        if name.startswith("target."):
            assert p.grad is None, name
        else:
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name
    for (name, b), c in zip(ours.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(b.double(), c.double(), atol=1e-5, rtol=1e-5, msg=name)


def test_the_target_begins_as_the_online_network_and_shares_nothing_with_it() -> None:
    model = build()
    for part in ("encoder", "projector"):
        online, target = getattr(model, part).state_dict(), getattr(model.target, part).state_dict()
        assert online.keys() == target.keys()
        for name, tensor in online.items():
            assert torch.equal(tensor, target[name]), name
            assert tensor.data_ptr() != target[name].data_ptr(), name


def test_the_target_follows_by_the_rule_and_in_no_other_way() -> None:
    state = start(build().double(), weight_decay=0.1)
    model = state.module
    total = EPOCHS * STEPS_PER_EPOCH
    for step, views in enumerate(some_batches(3, (2, 8))):
        before = [p.clone() for p in model.target.parameters()]
        go_on(state, [views])
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / total) + 1) / 2
        online = [*model.encoder.parameters(), *model.projector.parameters()]
        for new, old, ahead in zip(model.target.parameters(), before, online, strict=True):
            assert not new.requires_grad
            torch.testing.assert_close(new, tau * old + (1 - tau) * ahead)
            assert not torch.equal(new, old)


@pytest.mark.parametrize(("step", "tau"), [(0, 0.9), (50, 0.95), (25, 0.95 - 0.05 * math.sqrt(0.5)), (100, 1.0)])
def test_momentum_rises_to_1_along_a_cosine(step: int, tau: float) -> None:
    assert build().momentum_at(Moment(step, 10, 100)) == pytest.approx(tau)


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_that_is_no_average_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match=f"between 0 and 1, not {momentum}"):
        BYOL(tiny_encoder(), momentum=momentum)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_ranks_together_make_the_steps_of_one(ranks: int, name: str) -> None:
    batches = some_batches(3, (2, 8))
    optim = {"name": name, "exclude_1d": name == "lars", "predictor_lr": "cosine"}
    alone = outcome(build, batches, **optim)
    for together in run_ranks(ranks, _outcome, batches, optim):
        assert_same(together, alone, atol=1e-5)
    state = alone[2]
    for part in ("encoder", "projector"):
        moved = [n for n in state if n.startswith(f"model.{part}.") and n.endswith("weight")]
        assert moved
        assert all(not torch.equal(state[n], state[n.replace("model.", "model.target.")]) for n in moved)


def _outcome(batches: list[tuple[Tensor, ...]], optim: dict[str, object]) -> tuple:
    return outcome(build, batches, **optim)


@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_that_stops_goes_on_bit_equal(stop: int) -> None:
    batches = [tuple(v.float() for v in views) for views in some_batches(8, (2, 8))]
    straight = start(build())
    go_on(straight, batches)
    for name, tensor in resumed(build, batches, stop).items():
        assert torch.equal(tensor, straight.tensors()[name]), name


def test_groups_hold_every_online_parameter_once_and_no_target() -> None:
    model = build()
    groups = model.parameter_groups()
    assert groups.keys() == {"encoder", "predictor"}
    held = [id(p) for group in groups.values() for p in group]
    online = [p for name, p in model.named_parameters() if not name.startswith("target.")]
    assert sorted(held) == sorted(map(id, online))
    assert {id(p) for p in groups["predictor"]} == {id(p) for p in model.predictor.parameters()}


def test_heads_have_the_published_sizes() -> None:
    encoder = nn.Identity()
    encoder.feature_dim = 2048
    model = build_method({"name": "byol"}, copy.deepcopy(encoder))
    shapes = [tuple(p.shape) for p in (*model.projector.parameters(), *model.predictor.parameters())]
    assert shapes == [(4096, 2048), (4096,), (4096,), (256, 4096), (4096, 256), (4096,), (4096,), (256, 4096)]


@pytest.mark.parametrize(
    ("recipe", "blurs"), [("byol-imagenet-100ep", [(1.0, 0.0), (0.1, 0.2)]), ("byol-cifar10", [(0.0, 0.0)] * 2)]
)
def test_views_of_the_recipes_differ_in_blur_and_solarization_alone(recipe: str, blurs: list) -> None:
    settings = parse(Pretrain, [], recipe=recipe, prog="pretrain.py")
    check_view_recipes(settings, BYOL.num_views, takes_small_views=False)
    views = view_recipes(settings, 0, BYOL.num_views)
    assert [(v.blur, v.solarize) for v in views] == blurs
    assert len({replace(v, blur=0.0, solarize=0.0) for v in views}) == 1


def test_the_imagenet_recipe_adapts_and_decays_no_bias_and_no_batchnorm() -> None:
    optim = parse(Pretrain, [], recipe="byol-imagenet-100ep", prog="pretrain.py").optim
    model = build()
    optimizer, schedules = build_optimizer(model.parameter_groups(), optim, 7.2, 100, 10)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    seen = {True: 0, False: 0}
    for group, schedule in zip(optimizer.param_groups, schedules, strict=True):
        assert schedule.at(999) < 1e-3 * schedule.peak  # the predictor's, too
        for parameter in group["params"]:
            adapted = id(parameter) in matrices
            assert group.get("adapted_decay") == (1e-6 if adapted else None)
            assert group["weight_decay"] == 0
            seen[adapted] += 1
    assert seen == {True: 5, False: 6}  # five layers, three batch-norms between them
