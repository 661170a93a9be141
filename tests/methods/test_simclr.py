"""SimCLR is equation 1 on the batch of all ranks."""

import functools

import pytest
import torch
from torch import Tensor, nn

from simsiam.methods.registry import build_method
from simsiam.methods.simclr import SimCLR
from tests.losses.test_nt_xent import by_loops
from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import reference, tiny_encoder
from tests.ranks import run_ranks

EXTRAS = {"predictor_hidden": 4, "stop_gradient": True}


def pair(images: int = 7) -> Tensor:
    """Two views (2, images, 3, 8, 8) that have something in common, in float32."""
    image, *noise = some_batches(1, (3, 8))[0][0][:, :images].float()
    return image + 0.5 * torch.stack(noise)


def build(**options: object) -> SimCLR:
    torch.manual_seed(1)
    return SimCLR(tiny_encoder(), **{"dim": 6, "projector_hidden": 10, "temperature": 0.5, **options})


def plain(model: SimCLR, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """z of each view by a forward of its own through ordinary batch-norm."""
    return model.projector(model.encoder(x1)), model.projector(model.encoder(x2))


@pytest.mark.parametrize("layers", [2, 3])
def test_loss_and_gradients_are_those_of_equation_1(layers: int) -> None:
    model = build(projector_layers=layers)
    exact = reference(model)
    x1, x2 = pair()
    loss = model(x1, x2).loss
    loss.backward()
    expected = by_loops(torch.stack(plain(exact, x1.double(), x2.double())), 0.5)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name


@pytest.mark.parametrize(("ranks", "options"), [(2, {}), (4, {}), (2, EXTRAS)])
def test_steps_on_ranks_are_those_of_one_rank_on_the_whole_batch(ranks: int, options: dict) -> None:
    make, batches = functools.partial(build, **options), some_batches(3, (2, 8))
    alone = outcome(make, batches)
    assert all(grad.abs().max() > 1e-6 for name, grad in alone[1].items() if name.endswith("weight"))
    for together in run_ranks(ranks, outcome, make, batches):
        assert_same(together, alone, atol=1e-9)


@pytest.mark.parametrize("stop", [False, True])
def test_a_predictor_stands_on_one_view_and_the_loss_goes_both_ways(stop: bool) -> None:
    model = build(predictor_hidden=4, stop_gradient=stop)
    exact = reference(model)
    x1, x2 = pair()
    loss = model(x1, x2).loss
    loss.backward()
    z1, z2 = plain(exact, x1.double(), x2.double())
    p1, p2 = exact.predictor(z1), exact.predictor(z2)
    if stop:
        z1, z2 = z1.detach(), z2.detach()
    expected = (by_loops(torch.stack([p1, z2]), 0.5) + by_loops(torch.stack([p2, z1]), 0.5)) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, p), q in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q[1].grad).abs().max() < 1e-5 * max(1, q[1].grad.abs().max()), name


def test_both_ways_without_predictor_is_the_loss_itself() -> None:
    """So 66.5, 66.4 and 66.0 of SimSiam's section 6.2 are of one scale."""
    views = pair()
    assert build()(views).loss.item() == pytest.approx(build(stop_gradient=True)(views).loss.item(), abs=1e-6)


def test_the_last_batch_norm_does_not_shift_and_is_trained_by_nobody() -> None:
    model = build()
    held = {id(p) for group in model.parameter_groups().values() for p in group}
    left_out = [name for name, p in model.named_parameters() if id(p) not in held]
    assert left_out == ["projector.7.bias"]
    assert torch.equal(model.projector[-1].bias, torch.zeros(6))


def test_the_predictor_is_a_group_of_its_own() -> None:
    model = build(predictor_hidden=4)
    assert [id(p) for p in model.parameter_groups()["predictor"]] == [id(p) for p in model.predictor.parameters()]
    assert "predictor" not in build().parameter_groups()


def test_projections_are_both_views_without_gradient() -> None:
    views = pair(5)
    model = build()
    output = model(views)
    assert output.projections.shape == (2, 5, 6)
    assert not output.projections.requires_grad
    torch.testing.assert_close(output.projections[1], model.projector(model.encoder(views.flatten(0, 1)))[5:])


def test_the_official_widths() -> None:
    with torch.device("meta"):
        model = build_method({"name": "simclr", "projector_layers": 2}, "resnet50")
    sizes = [(m.in_features, m.out_features, m.bias is None) for m in model.projector if isinstance(m, nn.Linear)]
    assert sizes == [(2048, 2048, True), (2048, 128, True)]


def test_steps_on_a_batch_lower_its_loss() -> None:
    losses = go_on(start(build()), [(pair(8),)] * 12)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("options", [{}, EXTRAS])
def test_resume_is_bit_equal(options: dict) -> None:
    make, batches = functools.partial(build, **options), [(pair(8) + step,) for step in range(4)]
    straight = start(make())
    go_on(straight, batches)
    for name, tensor in resumed(make, batches, stop=2).items():
        assert torch.equal(tensor, straight.tensors()[name]), name
