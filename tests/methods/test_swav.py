"""SwAV is the paper's algorithm: codes from the batch (and a queue) of all ranks, predicted from the other views."""

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam.data.augment import Augment
from simsiam.data.crops import Crops
from simsiam.distributed.collectives import rank, world_size
from simsiam.errors import UserError
from simsiam.methods.registry import build_method, resolve_method
from simsiam.methods.swav import SwAV
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain, SmallViews, Views
from simsiam.settings.view_recipes import check_view_recipes, view_recipes
from simsiam.training.module import Moment
from simsiam.training.step import train_step
from tests.methods.stepping import (
    IMAGES,
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

TWO, CROPS = ((2, 8),), ((2, 8), (3, 6))


def build(**options: object) -> SwAV:
    torch.manual_seed(1)
    options = {"dim": 6, "projector_hidden": 16, "prototypes": 5, "freeze_steps": 0, **options}
    return SwAV(tiny_encoder(), **options)


def by_loops(model: SwAV, crops: tuple[Tensor, ...], queue: Tensor | None = None) -> Tensor:
    """The loss, a forward for each view, codes and cross-entropies number by number. Prototypes as they are."""
    temperature, epsilon, rounds = 0.1, 0.05, 3
    prototypes = model.prototypes.weight

    def scores(x: Tensor) -> Tensor:
        z = model.projector(model.encoder(x))
        return torch.stack([prototypes @ (row / row.square().sum().sqrt()) for row in z])

    def code(of_batch: Tensor, of_queue: Tensor | None) -> list[list[float]]:
        held = [] if of_queue is None else (of_queue @ prototypes.T).tolist()
        q = [[math.exp(s / epsilon) for s in row] for row in [*held, *of_batch.tolist()]]
        for _ in range(rounds):
            mass = [sum(column) for column in zip(*q)]
            q = [[value / m / len(mass) for value, m in zip(row, mass)] for row in q]
            q = [[value / sum(row) / len(q) for value in row] for row in q]
        return [[value * len(q) for value in row] for row in q][len(held) :]

    # The encoder sees a resolution at a time, the projector all views; per view that is the same.
    views = [scores(view) for size in crops for view in size]
    losses = []
    for a in range(2):
        q = code(views[a].detach(), None if queue is None else queue[:, a])
        for v, s in enumerate(views):
            if v != a:
                per_image = [
                    -sum(w * lp for w, lp in zip(q[n], (s[n] / temperature).log_softmax(0))) for n in range(IMAGES)
                ]
                losses.append(sum(per_image) / IMAGES)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sizes", [TWO, CROPS], ids=["two views", "multi-crop"])
@pytest.mark.parametrize("layers", [2, 3])
def test_loss_gradients_and_statistics_are_those_of_the_paper(sizes: tuple, layers: int) -> None:
    ours = build(projector_layers=layers).double()
    ours.before_step(Moment(0, 4, 12))
    exact = reference(ours)
    (crops,) = some_batches(1, *sizes)
    loss = ours(*crops).loss
    loss.backward()
    expected = by_loops(exact, crops)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, b), c in zip(ours.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=name)


def test_two_views_may_come_apart_or_stacked() -> None:
    (views,) = some_batches(1, *TWO)[0]
    assert torch.equal(build()(*views.float()).loss, build()(views.float()).loss)


def test_prototypes_have_length_1_before_each_step_and_no_bias() -> None:
    state = start(build(), lr=50.0)
    for batch in some_batches(3, *TWO):
        seen: list[Tensor] = []
        hook = state.module.prototypes.register_forward_pre_hook(
            lambda m, _, s=seen: s.append(m.weight.detach().clone())
        )
        go_on(state, [tuple(v.float() for v in batch)])
        hook.remove()
        lengths = seen[0].norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
        assert (state.module.prototypes.weight.norm(dim=1) - 1).abs().max() > 1e-3  # the step left the sphere
    assert state.module.prototypes.bias is None


def test_prototypes_stand_still_for_the_first_steps_while_the_rest_moves() -> None:
    state = start(build(freeze_steps=2), weight_decay=0.1)
    state.module.before_step(Moment(0, 4, 12))
    for step, batch in enumerate(some_batches(4, *TWO)):
        prototypes, encoder = (p.weight.clone() for p in (state.module.prototypes, state.module.encoder[0]))
        go_on(state, [tuple(v.float() for v in batch)])
        moved = (state.module.prototypes.weight - prototypes).abs().max()
        assert moved < 1e-6 if step < 2 else moved > 1e-4
        assert not torch.equal(state.module.encoder[0].weight, encoder)


def queued(queue: int, **options: object) -> SwAV:
    """With a queue that fills from the second step on."""
    return build(queue=queue, queue_epoch=1 / STEPS_PER_EPOCH, **options)


def features(model: SwAV, views: Tensor) -> Tensor:
    """Unit features (N, 2, D) of a batch, as a copy of the model in training makes them."""
    z = torch.stack([model.projector(model.encoder(view)) for view in views], dim=1)
    return z / z.norm(dim=2, keepdim=True)


@pytest.mark.parametrize("queue", [2 * IMAGES, 2 * IMAGES - 3, 5])
@torch.no_grad()
def test_the_queue_holds_the_newest_features_and_is_used_once_full(queue: int) -> None:
    state = start(queued(queue).double())
    model, expected, first_used = state.module, torch.zeros(queue, 2, 6).double(), 2 + (queue > IMAGES)
    for step, (views,) in enumerate(some_batches(5, *TWO)):
        model.before_step(Moment(step, STEPS_PER_EPOCH, 12))
        exact = reference(model)
        with torch.enable_grad():
            loss = model(views).loss.item()
        used = expected.clone() if step >= first_used else None
        assert loss == pytest.approx(by_loops(exact, (views,), used).item(), abs=1e-10)
        if used is not None:
            assert abs(loss - by_loops(exact, (views,)).item()) > 1e-4
        model.after_step(Moment(step, STEPS_PER_EPOCH, 12))
        if step >= 1:
            expected = torch.cat([features(exact, views), expected])[:queue]
        torch.testing.assert_close(model.queue, expected)
        assert torch.equal(model.state_dict()["queue"], model.queue)


def filled(views: Tensor) -> Tensor:
    """The queue after one step in two micro-batches on each rank, which has the batch's images as the plan gives them.

    In evaluation mode, where an image's features are the same in whatever batch.
    """
    model = queued(IMAGES - 3).double().eval()
    model.prepare(64, IMAGES)
    model.before_step(Moment(1, 4, 12))
    for micro in views.chunk(world_size(), dim=1)[rank()].chunk(2, dim=1):
        model(micro)
    model.after_step(Moment(1, 4, 12))
    return model.queue


@pytest.mark.parametrize("ranks", [1, 2, 4])
@torch.no_grad()
def test_the_queue_takes_in_a_batch_in_its_order_on_any_ranks_and_micro_batches(ranks: int) -> None:
    (views,) = some_batches(1, *TWO)[0]
    expected = features(queued(0).double().eval(), views)[: IMAGES - 3]
    for queue in run_ranks(ranks, filled, views) if ranks > 1 else [filled(views)]:
        torch.testing.assert_close(queue, expected)


METHODS: dict[str, tuple[Callable[[], SwAV], tuple]] = {
    "two views": (build, TWO),
    "multi-crop and a queue of odd length": (lambda: queued(IMAGES + 3, projector_layers=3), CROPS),
}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("which", METHODS)
def test_ranks_together_make_the_steps_of_one(ranks: int, which: str) -> None:
    make, sizes = METHODS[which]
    batches = some_batches(4, *sizes)  # the queue is in use in the last
    alone = outcome(make, batches)
    for together in run_ranks(ranks, outcome, make, batches):
        assert_same(together, alone, atol=1e-5)
    assert ("model.queue" in alone[2]) == ("queue" in which)


@pytest.mark.parametrize("which", METHODS)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_stops_goes_on_bit_equal(which: str, stop: int) -> None:
    make, sizes = METHODS[which]
    batches = [tuple(v.float() for v in crops) for crops in some_batches(6, *sizes)]
    straight = start(make())
    go_on(straight, batches)
    for name, tensor in resumed(make, batches, stop).items():
        assert torch.equal(tensor, straight.tensors()[name]), name


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_scores_are_made_in_float32_under_autocast(precision: torch.dtype) -> None:
    model = build()
    model.before_step(Moment(0, 4, 12))
    made: list[Tensor] = []
    model.prototypes.register_forward_hook(lambda _, inputs, out: made.extend([*inputs, out]))
    with torch.autocast("cpu", precision):
        loss = model(some_batches(1, *TWO)[0][0].float()).loss
    assert {t.dtype for t in made} == {torch.float32}
    torch.testing.assert_close(made[1], made[0] @ model.prototypes.weight.T)
    loss.backward()
    assert model.prototypes.weight.grad.abs().max() > 0


def test_groups_hold_every_parameter_once() -> None:
    model = build(queue=4)
    groups = model.parameter_groups()
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert groups["prototypes"] == [model.prototypes.weight]


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"temperature": -1.0}, {"iterations": 0}, {"queue": -1}])
def test_options_without_sense_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match="above 0"):
        build_method({"name": "swav", **options}, tiny_encoder())


def test_heads_have_the_published_sizes() -> None:
    encoder = nn.Identity()
    encoder.feature_dim = 2048
    model = build_method({"name": "swav"}, copy.deepcopy(encoder))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    assert list(shapes.values()) == [(2048, 2048), (128, 2048), (3000, 128)]


def test_the_loss_falls_on_large_and_small_views_as_loading_gives_them() -> None:
    settings = Pretrain(views=Views(size=8, resize=8, blur=0.0), small_views=SmallViews(count=3, size=6))
    generator = torch.Generator().manual_seed(0)
    images, small = (
        torch.randint(256, (v, IMAGES, s, s, 3), generator=generator, dtype=torch.uint8) for v, s in ((2, 8), (3, 6))
    )
    crops = Crops(images, np.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.int64), 0, (), small)
    augment = Augment(settings.views, 0, partial(view_recipes, settings, num_views=SwAV.num_views))
    state = start(build(freeze_steps=2))
    losses = [train_step(state, [augment.inputs(crops)]).loss.item() for _ in range(10)]
    assert losses[-1] < losses[0] - 0.2
    assert state.module(*augment.inputs(crops)).projections.shape == (2, IMAGES, 6)


MULTI_CROP = ("--small-views.count", "6", "--views.scale", "[0.14, 1.0]", "--method.projector-layers", "2")
BATCH_256 = ("--batch-size", "256", "--method.queue", "3840", "--optim.lr", "0.6", "--optim.warmup-epochs", "0")


@pytest.mark.parametrize(
    ("recipe", "words", "views", "options"),
    [
        ("swav-cifar10", (), [(32, (0.2, 1.0))] * 2, (512, 2, 0)),
        ("swav-imagenet-100ep", (), [(224, (0.08, 1.0))] * 2, (3000, 3, 0)),
        (
            "swav-imagenet-100ep", MULTI_CROP,
            [(224, (0.14, 1.0))] * 2 + [(96, (0.05, 0.14))] * 6, (3000, 2, 0),
        ),
        ("swav-imagenet-100ep", BATCH_256, [(224, (0.08, 1.0))] * 2, (3000, 3, 3840)),
    ],
)  # fmt: skip
def test_recipes_and_what_their_headers_offer_resolve(
    recipe: str, words: tuple, views: list, options: tuple[int, int, int]
) -> None:
    settings = parse(Pretrain, list(words), recipe=recipe, prog="pretrain.py")
    check_view_recipes(settings, SwAV.num_views, SwAV.takes_small_views)
    assert [(v.size, v.scale) for v in view_recipes(settings, 0, SwAV.num_views)] == views
    method = resolve_method(settings.method)
    assert (method["prototypes"], method["projector_layers"], method["queue"]) == options
