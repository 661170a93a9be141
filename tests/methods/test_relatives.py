"""The relatives of SimSiam that train on density ratios, or with two networks: losses, turns, ranks, resume."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.adversarial import Adversarial, AdversarialMMD
from simsiam.methods.base import Method
from simsiam.methods.joint import Joint, RatioOnly
from simsiam.methods.no_sg import AlternatingTwoNetworks, TwoNetworks
from simsiam.training.module import Moment
from tests.losses.test_mmd import by_loops
from tests.methods.stepping import STEPS_PER_EPOCH, go_on, start
from tests.methods.test_simsiam import reference, tiny_encoder

SMALL = {"dim": 6, "projector_hidden": 10}
RELATIVES = {
    "adv": functools.partial(Adversarial, **SMALL, discriminator_epochs=0.25, encoder_every=2),
    "adv-mmd": functools.partial(AdversarialMMD, **SMALL),
    "joint": functools.partial(Joint, **SMALL),
    "joint-predictor": functools.partial(Joint, **SMALL, predict=True),
    "e2e-x": functools.partial(RatioOnly, level="x"),
    "e2e-h": functools.partial(RatioOnly, level="h"),
    "e2e-z": functools.partial(RatioOnly, **SMALL),
    "no-sg": functools.partial(TwoNetworks, **SMALL, predictor_hidden=4),
    "no-sg-alt": functools.partial(AlternatingTwoNetworks, **SMALL, predictor_hidden=4),
}
every_relative = pytest.mark.parametrize("name", RELATIVES)


def build(name: str, **options: object) -> Method:
    encoder = tiny_encoder()
    torch.manual_seed(1)
    return RELATIVES[name](encoder, **options)


def views(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image, *noise = torch.randn(3, 8, 3, 8, 8, generator=generator)
    return image + 0.3 * torch.stack(noise)


def at(step: int) -> Moment:
    return Moment(step, 10, 100)


def bce(real: Tensor, fake: Tensor) -> Tensor:
    """Half of both cross-entropies, pair by pair, with a sigmoid as the source has it."""
    terms = [-torch.log(torch.sigmoid(t)) for t in real] + [-torch.log(1 - torch.sigmoid(t)) for t in fake]
    return sum(terms) / len(terms)


def d(model: Method, pairs: list[Tensor]) -> Tensor:
    """The discriminator without dropout, pair by pair."""
    out = []
    for x in pairs:
        for layer in model.discriminator.layers[:-1]:
            x = torch.relu(layer(x))
        out.append(model.discriminator.layers[-1](x)[0])
    return torch.stack(out)


def expected_loss(name: str, model: Method, x1: Tensor, x2: Tensor, orders: list[list[int]]) -> Tensor:
    """The loss in float64, a forward for each view; `orders` are those of the halves of fake pairs."""
    n, (p, q) = len(x1), orders

    def fakes(a: Tensor, b: Tensor) -> list[Tensor]:
        return [torch.cat([a[p[i]], b[q[i]]]) for i in range(n)]

    def reals(a: Tensor, b: Tensor) -> list[Tensor]:
        return [torch.cat([a[i], b[i]]) for i in range(n)]

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return sum((a[i] @ b[i]) / (a[i].norm() * b[i].norm()) for i in range(n)) / n

    if name == "e2e-x":
        own, other = model.encoder[0].weight, model.difference
        wide = nn.Conv2d(6, 8, 3, bias=False).double()
        wide.weight = nn.Parameter(torch.cat([(own + other) / 2, (own - other) / 2], dim=1).detach())
        network = nn.Sequential(wide, *model.encoder[1:])
        real = network(torch.stack(reals(x1, x2)))
        return bce(d(model, list(real)), d(model, list(network(torch.stack(fakes(x1, x2))))))
    if name == "e2e-h":
        h1, h2 = model.encoder(x1), model.encoder(x2)
        return bce(d(model, reals(h1, h2)), d(model, fakes(h1, h2)))
    z1 = model.projector(model.encoder(x1))
    if name.startswith("no-sg"):
        z2 = model.second_projector(model.second_encoder(x2))
        return -cosine(model.predictor(z1), z2.detach()) / 2 - cosine(model.second_predictor(z2), z1.detach()) / 2
    z2 = model.projector(model.encoder(x2))
    if name == "adv-mmd":
        return by_loops(z1, z2, torch.tensor(orders))
    if name == "joint-predictor":
        p1, p2 = model.predictor(z1), model.predictor(z2)
        ratio = bce(d(model, reals(p1, z2)), d(model, fakes(p1, z2)))
        return -cosine(p1, z2) / 2 - cosine(p2, z1) / 2 + 10 * ratio
    ratio = bce(d(model, reals(z1, z2)), d(model, fakes(z1, z2)))
    if name == "adv":
        return ratio - torch.sigmoid(d(model, reals(z1, z2))).mean()
    return ratio if name == "e2e-z" else -cosine(z1, z2) + 10 * ratio


@every_relative
def test_loss_and_gradients_are_those_of_the_definition(name: str) -> None:
    model = build(name, **({} if name.startswith("no-sg") or name == "adv-mmd" else {"dropout": 0.0}))
    exact = reference(model)
    x = views()
    model.before_step(at(4))
    loss = model(x).loss
    loss.backward()
    orders = model._orders(8, torch.device("cpu")).tolist() if hasattr(model, "_orders") else [[], []]
    expected = expected_loss(name, exact, *x.double(), orders)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    if name in ("adv", "e2e-x"):
        return  # gradients of two players, and of a kernel in two halves: below
    expected.backward()
    for (key, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 2e-5 * max(1, q.grad.abs().max()), key


def test_each_player_has_the_gradient_of_its_own_loss() -> None:
    model, exact = build("adv", dropout=0.0), reference(build("adv", dropout=0.0))
    model.before_step(at(4))
    model(views()).loss.backward()
    p, q = model._orders(8, torch.device("cpu"))
    z1, z2 = (exact.projector(exact.encoder(x)) for x in views().double())
    bce(
        d(exact, list(torch.cat([z1, z2], 1).detach())), d(exact, list(torch.cat([z1[p], z2[q]], 1).detach()))
    ).backward()
    of_d = {key: p.grad.clone() for key, p in exact.discriminator.named_parameters()}
    exact.zero_grad()
    (-torch.sigmoid(d(exact, list(torch.cat([z1, z2], 1)))).mean()).backward()
    for key, parameter in exact.named_parameters():
        mine = model.get_parameter(key).grad
        expected = of_d[key.removeprefix("discriminator.")] if key.startswith("discriminator.") else parameter.grad
        torch.testing.assert_close(mine.double(), expected, atol=1e-6, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_a_kernel_in_two_halves_has_the_gradient_of_the_wide_one() -> None:
    model, exact = build("e2e-x", dropout=0.0), reference(build("e2e-x", dropout=0.0))
    x = views()
    model.before_step(at(4))
    model(x).loss.backward()
    expected = expected_loss("e2e-x", exact, *x.double(), model._orders(8, torch.device("cpu")).tolist())
    gradients = torch.autograd.grad(expected, [*exact.discriminator.parameters(), *exact.encoder[1].parameters()])
    mine = [*model.discriminator.parameters(), *model.encoder[1].parameters()]
    for parameter, gradient in zip(mine, gradients, strict=True):
        torch.testing.assert_close(parameter.grad.double(), gradient, atol=1e-6, rtol=1e-4)
    # The kernel and its difference, by what a small move of each does to the loss.
    for name in ("encoder.0.weight", "difference"):
        moved = exact.get_parameter(name)
        direction = torch.randn(moved.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        losses = []
        for step in (1e-4, -2e-4):
            moved.data.add_(direction, alpha=step)
            orders = model._orders(8, torch.device("cpu")).tolist()
            losses.append(expected_loss("e2e-x", exact, *x.double(), orders).item())
        moved.data.add_(direction, alpha=1e-4)
        slope = (model.get_parameter(name).grad.double() * direction).sum().item()
        assert slope == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-3, abs=1e-6)


def test_the_exported_encoder_is_that_of_an_image_beside_itself() -> None:
    model = build("e2e-x").eval()
    x, _ = views()
    pairs = model._features_of_pairs(x, x)[:8]
    torch.testing.assert_close(model.encoder(x), pairs)
    assert model.encoder[0].weight.shape[1] == 3


def test_level_x_needs_a_convolution_of_an_image() -> None:
    encoder = nn.Flatten()
    encoder.feature_dim = 12
    with pytest.raises(UserError, match="level h or z"):
        RatioOnly(encoder, level="x")
    assert RatioOnly(encoder, level="h").discriminator.layers[0].in_features == 24


def moves(method: Method, steps: int, **optim: object) -> list[set[str]]:
    """The groups whose parameters differ after each step."""
    state = start(method, **optim)
    groups, found = method.parameter_groups(), []
    for step in range(steps):
        before = {name: [p.detach().clone() for p in parameters] for name, parameters in groups.items()}
        go_on(state, [(views(step),)])
        found.append({n for n, ps in groups.items() if any(not torch.equal(*pair) for pair in zip(ps, before[n]))})
    return found


def test_the_discriminator_begins_alone_and_the_encoder_moves_every_so_often() -> None:
    model = build("adv", discriminator_epochs=1.0, encoder_every=3)
    assert STEPS_PER_EPOCH == 4
    both, alone = {"discriminator", "encoder"}, {"discriminator"}
    expected = [alone] * 4 + [alone, alone, both, alone, alone, both]
    assert moves(model, 10, name="adam", lr=0.1, weight_decay=0.1) == expected
    assert [set(model.moving_groups(at(step))) for step in (9, 10, 12)] == [alone, alone, both]


def test_the_loss_of_a_resting_encoder_is_the_same_without_its_graph() -> None:
    model, other = build("adv"), build("adv")
    model.before_step(at(5))
    other.before_step(at(5))
    other._needs_graph = True
    mine, theirs = model(views()).loss, other(views()).loss
    assert torch.equal(mine, theirs)
    mine.backward()
    theirs.backward()
    assert model.encoder[0].weight.grad is None
    assert other.encoder[0].weight.grad is not None
    for p, q in zip(model.discriminator.parameters(), other.discriminator.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_two_networks_move_together_or_by_turns() -> None:
    first, second = {"encoder", "predictor"}, {"second_encoder", "second_predictor"}
    assert moves(build("no-sg"), 2) == [first | second] * 2
    assert moves(build("no-sg-alt"), 4, weight_decay=0.1) == [first, second, first, second]


def test_two_networks_share_nothing_and_begin_apart() -> None:
    torch.manual_seed(0)
    model = TwoNetworks("resnet8", **SMALL)
    for part in ("encoder", "projector", "predictor"):
        pairs = list(zip(getattr(model, part).parameters(), getattr(model, f"second_{part}").parameters()))
        assert all(p.data_ptr() != q.data_ptr() for p, q in pairs)
        assert not any(torch.equal(p, q) for p, q in pairs if p.dim() > 1)


def test_both_predictors_keep_their_rate() -> None:
    state = start(build("no-sg"))
    rates = {g["name"]: s.at(8) / s.peak for g, s in zip(state.optimizer.param_groups, state.schedules, strict=True)}
    assert rates["predictor"] == rates["second_predictor"] == 1
    assert rates["encoder"] == rates["second_encoder"] < 1


def test_no_gradient_crosses_from_one_network_to_the_other() -> None:
    model = build("no-sg")
    x1, x2 = views()
    f = model.projector(model.encoder(x1))
    F.cosine_similarity(model.predictor(f), model(x1, x2).projections[1]).mean().div(-2).backward()
    alone = [p.grad.clone() for p in model.encoder.parameters()]
    model.zero_grad()
    model(x1, x2).loss.backward()
    for p, expected in zip(model.encoder.parameters(), alone, strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-4)


def test_fake_pairs_are_new_ones_in_each_step_and_micro_batch_and_are_permutations() -> None:
    model, seen = build("joint"), []
    for step in range(3):
        model.before_step(at(step))
        for _ in range(2):
            model._next_place()
            seen.append(model._orders(8, torch.device("cpu")).numpy())
    assert all((np.sort(orders) == np.arange(8)).all() for orders in seen)
    assert len({tuple(order) for orders in seen for order in orders}) == 12


@every_relative
def test_groups_hold_every_parameter_once_and_views_keep_their_statistics(name: str) -> None:
    model = build(name)
    held = [id(p) for group in model.parameter_groups().values() for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    output = model(views())
    assert output.projections.shape[:2] == (2, 8)
    assert not output.projections.requires_grad


def coloured() -> Tensor:
    """Two views (2, 32, 3, 8, 8) of images of four colours: a pair of one image is of one colour."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).repeat(8, 1)
    return 3 * colours.view(32, 3, 1, 1) + 0.3 * torch.randn(2, 32, 3, 8, 8, generator=generator)


@every_relative
def test_steps_on_images_that_have_something_in_common_lower_the_loss(name: str) -> None:
    rate = 0.03 if name == "adv-mmd" else 0.1  # at 0.1 it leaps about
    state = start(build(name), name="adam", lr=rate, weight_decay=0.0, schedule="constant")
    losses = go_on(state, [(coloured(),)] * 30)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: build("adv", encoder_every=0), "encoder_every"),
        (lambda: build("adv-mmd", sigmas=(1.0, 0.0)), "sigmas"),
        (lambda: build("adv-mmd", ridge=0.0), "ridge"),
    ],
)
def test_numbers_without_meaning_are_refused(build: Callable[[], Method], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()


def test_what_is_compiled_has_the_same_graph_in_every_step() -> None:
    model = build("adv", discriminator_epochs=1.0)
    for compiled, needs in ((False, [False, True]), (True, [True, True])):
        model.is_compiled, seen = compiled, []
        for step in (0, STEPS_PER_EPOCH * 5):
            model.before_step(at(step))
            seen.append(model._needs_graph)
        assert seen == needs
