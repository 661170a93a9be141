"""MoCo is its formula, its key network follows by the rule, its queue is first in, first out, alike on all ranks."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.moco import MoCo
from simsiam.methods.registry import build_method
from simsiam.models.split_batchnorm import SplitBatchNorm
from simsiam.training.module import Moment
from tests.losses.test_info_nce import by_loops
from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import reference, tiny_encoder
from tests.ranks import run_ranks

KINDS = [("shuffled", False), ("shuffled", True), ("synced", False), ("synced", True)]


def pair(images: int = 8, step: int = 0) -> Tensor:
    """Two views (2, images, 3, 8, 8) that have something in common, in float32."""
    generator = torch.Generator().manual_seed(step)
    image, *noise = torch.randn(3, images, 3, 8, 8, generator=generator)
    return image + 0.5 * torch.stack(noise)


def build(batchnorm: str = "synced", symmetric: bool = False, **options: object) -> MoCo:
    torch.manual_seed(1)
    small = {"dim": 6, "projector_hidden": 10, "queue_size": 48, "momentum": 0.9, "bn_groups": 4}
    return MoCo(tiny_encoder(), batchnorm=batchnorm, symmetric=symmetric, **{**small, **options})


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_and_gradients_are_those_of_equation_1(symmetric: bool) -> None:
    model = build(symmetric=symmetric)
    for parameter in [*model.key_encoder.parameters(), *model.key_projector.parameters()]:
        parameter.data.mul_(1.5)  # so that a key network stands apart from the query network
    exact = reference(model)
    x1, x2 = pair(7)
    loss = model(x1, x2).loss
    loss.backward()

    def one_way(asked: Tensor, answering: Tensor) -> Tensor:
        keys = F.normalize(exact.key_projector(exact.key_encoder(answering)), dim=1)
        return by_loops(exact.projector(exact.encoder(asked)), keys.detach(), exact.queue, 0.2)

    x1, x2 = x1.double(), x2.double()
    expected = one_way(x1, x2) + (one_way(x2, x1) if symmetric else 0)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name


@pytest.mark.parametrize(
    ("batchnorm", "symmetric", "accumulate", "ranks"),
    [*((*kind, 1, 2) for kind in KINDS), ("shuffled", True, 1, 4), ("shuffled", True, 2, 2)],
)
def test_steps_on_ranks_are_those_of_one_rank_on_the_whole_batch(
    batchnorm: str, symmetric: bool, accumulate: int, ranks: int
) -> None:
    make, batches = functools.partial(build, batchnorm, symmetric, bn_groups=4 // accumulate), some_batches(3, (2, 8))
    alone = outcome(make, batches, accumulate=accumulate)
    assert all(grad.abs().max() > 1e-6 for name, grad in alone[1].items() if name.endswith("weight"))
    for together in run_ranks(ranks, functools.partial(outcome, accumulate=accumulate), make, batches):
        assert_same(together, alone, atol=1e-9)


def test_the_key_network_has_no_gradient_and_follows_by_the_rule() -> None:
    state = start(build("shuffled", True))
    model = state.module
    before = copy.deepcopy(model)
    go_on(state, [(pair(),)])
    for part in ("encoder", "projector"):
        slow, old, fast = (
            getattr(m, name) for m, name in ((model, f"key_{part}"), (before, f"key_{part}"), (model, part))
        )
        for new, was, ahead in zip(slow.parameters(), old.parameters(), fast.parameters(), strict=True):
            assert new.grad is None
            assert not new.requires_grad
            torch.testing.assert_close(new, 0.9 * was + 0.1 * ahead.detach())
            assert not torch.equal(new, was)
    held = {id(p) for group in model.parameter_groups().values() for p in group}
    assert held == {id(p) for p in [*model.encoder.parameters(), *model.projector.parameters()]}
    assert all(f"key_encoder.{name}" in model.state_dict() for name in model.encoder.state_dict())


def keys_of(model: MoCo, views: Tensor) -> Tensor:
    """What goes into the queue of views (ways, N, 3, H, W), by hand, with batch-norm over a whole view."""
    key = reference(model)
    return torch.cat([F.normalize(key.key_projector(key.key_encoder(view.double())), dim=1) for view in views]).float()


@pytest.mark.parametrize(("symmetric", "accumulate"), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_the_queue_takes_a_steps_keys_when_it_is_over_and_drops_the_oldest(symmetric: bool, accumulate: int) -> None:
    model = build(symmetric=symmetric)
    expected, first = model.queue.clone(), 0
    for step in range(7):
        at = Moment(step, 10, 100)
        model.before_step(at)
        fresh = []
        for micro in pair(step=step).chunk(accumulate, dim=1):
            assert torch.equal(model.queue, expected)
            model(micro)
            fresh.append(keys_of(model, micro if symmetric else micro[1:]))
        model.after_step(at)
        for key in torch.cat(fresh):
            expected[first] = key
            first = (first + 1) % len(expected)
        torch.testing.assert_close(model.queue, expected, atol=1e-5, rtol=0)
        expected = model.queue.clone()
        assert model.pointer.item() == first
    assert len(expected) < 7 * 8  # it has gone round


def test_micro_batches_see_one_queue_and_add_up_to_the_batch() -> None:
    """With frozen statistics, which are all that micro-batches change."""

    def without_statistics() -> MoCo:
        model = build()
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.eval()
        return model

    whole, parts = without_statistics(), without_statistics()
    for model, pieces in ((whole, 1), (parts, 4)):
        for step in range(2):
            model.zero_grad()
            model.before_step(Moment(step, 10, 100))
            for micro in pair(step=step).chunk(pieces, dim=1):
                (model(micro).loss / pieces).backward()
            model.after_step(Moment(step, 10, 100))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(whole.queue, parts.queue)


class Seen(nn.Module):
    """An encoder that keeps what it was given."""

    feature_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.mean((2, 3))


def shuffled_at(step: int, micro: int = 0, symmetric: bool = False) -> tuple[MoCo, Tensor, Tensor]:
    """The model after `micro` + 1 micro-batches of a step, what it was given last, and what its key network saw."""
    torch.manual_seed(0)
    model = MoCo(Seen(), dim=4, queue_size=64, bn_groups=4, symmetric=symmetric)
    model.before_step(Moment(step, 10, 100))
    for number in range(micro + 1):
        views = pair(16, step=number)
        model(views)
    return model, views, model.key_encoder.images


def test_keys_are_computed_in_another_order_and_put_back() -> None:
    model, (x1, x2), seen = shuffled_at(5)
    assert torch.equal(model.encoder.images, x1)
    assert not torch.equal(seen, x2)
    order = torch.tensor([next(n for n in range(16) if torch.equal(x2[n], image)) for image in seen])
    assert order.sort().values.tolist() == list(range(16))
    # No group of the keys is a group of the queries.
    assert all(len({n.item() // 4 for n in group}) > 1 for group in order.chunk(4))
    expected = F.normalize(model.key_projector(x2.mean((2, 3))), dim=1)
    torch.testing.assert_close(model._fresh[0][0], expected)


def test_the_order_is_another_one_for_each_step_micro_batch_and_view_and_the_same_after_a_resume() -> None:
    _, _, seen = shuffled_at(5)
    assert torch.equal(shuffled_at(5)[2], seen)
    assert not torch.equal(shuffled_at(6)[2], seen)
    model = shuffled_at(5, micro=1, symmetric=True)[0]
    orders = [model._order(16)]
    model._fresh = model._fresh[:1]
    orders = [*orders[0], *model._order(16)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_synced_keys_are_computed_in_the_given_order() -> None:
    torch.manual_seed(0)
    model = MoCo(Seen(), dim=4, queue_size=64, batchnorm="synced")
    x1, x2 = pair()
    model(x1, x2)
    assert torch.equal(model.key_encoder.images, x2)


def test_statistics_are_within_groups_only_where_keys_are_shuffled() -> None:
    split = [m for m in build("shuffled", True).modules() if isinstance(m, SplitBatchNorm)]
    assert [(m.views, m.groups) for m in split] == [(2, 4)] * 2
    assert not any(isinstance(m, SplitBatchNorm) for m in build("synced").modules())


@pytest.mark.parametrize("symmetric", [False, True])
def test_steps_on_a_batch_lower_its_loss(symmetric: bool) -> None:
    state = start(build("shuffled", symmetric))
    queue, losses = state.module.queue.clone(), []
    for _ in range(12):
        state.module.queue.copy_(queue)  # the keys of these images would be negatives of themselves
        losses += go_on(state, [(pair(),)])
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(
    ("batchnorm", "symmetric", "accumulate"), [("shuffled", True, 1), ("shuffled", True, 2), ("synced", False, 1)]
)
def test_resume_is_bit_equal(batchnorm: str, symmetric: bool, accumulate: int) -> None:
    make, batches = (
        functools.partial(build, batchnorm, symmetric, bn_groups=4 // accumulate),
        [(pair(step=step),) for step in range(6)],
    )
    straight = start(make(), accumulate)
    go_on(straight, batches)
    for name, tensor in resumed(make, batches, stop=3, accumulate=accumulate).items():
        assert torch.equal(tensor, straight.tensors()[name]), name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue_size": 100}, "queue_size 100 .* 16 keys of a step .*; take 96$"),
        ({"queue_size": 48, "symmetric": True}, "32 keys of a step .*16 x 2 views.*; take 64$"),
        ({"queue_size": 8}, "take 16$"),
        ({"queue_size": 0}, "take 16$"),
        ({"bn_groups": 5, "batchnorm": "shuffled"}, "bn_groups 5 .* 16"),
        ({"bn_groups": 0, "batchnorm": "shuffled"}, "bn_groups 0"),
        ({"bn_groups": 16, "batchnorm": "shuffled"}, "bn_groups 16 leaves one of 16 images"),
    ],
)
def test_what_does_not_divide_is_refused_before_training(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(**options).prepare(1000, 16)


def test_groups_do_not_matter_without_shuffle() -> None:
    build("synced", bn_groups=5).prepare(1000, 16)


def too_few_groups() -> str:
    try:
        build("shuffled", bn_groups=3, queue_size=48).prepare(1000, 24)
    except UserError as error:
        return str(error)


def test_groups_must_be_a_multiple_of_the_ranks() -> None:
    assert "multiple of the number of ranks, 2," in run_ranks(2, too_few_groups)[0]


def test_a_micro_batch_of_broken_groups_is_refused() -> None:
    with pytest.raises(UserError, match="micro-batch of 6 images .*bn_groups 4"):
        build("shuffled")(pair(6))
    with pytest.raises(UserError, match="bn_groups 4 leaves one of 4 images .*smaller --accumulate"):
        build("shuffled")(pair(4))


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = build_method({"name": "moco"}, "resnet50")
    assert model.queue.shape == (65536, 128)
    assert [(type(m), getattr(m, "out_features", None)) for m in model.projector] == [
        (nn.Linear, 2048), (nn.ReLU, None), (nn.Linear, 128),
    ]  # fmt: skip
    assert all(m.bias is not None for m in model.projector if isinstance(m, nn.Linear))


def test_the_queue_begins_as_directions() -> None:
    torch.testing.assert_close(build().queue.norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("symmetric", [False, True])
def test_projections_are_two_views_without_gradient(symmetric: bool) -> None:
    output = build("synced", symmetric)(pair(5))
    assert output.projections.shape == (2, 5, 6)
    assert not output.projections.requires_grad
