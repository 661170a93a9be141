"""Targets that are moving averages of an image's projections, kept image by image, with no predictor."""

import pytest
import torch
from torch import Tensor

from simsiam.errors import UserError
from simsiam.methods.simsiam import SimSiam
from simsiam.methods.simsiam_moving_average import MovingAverageSimSiam
from tests.methods.stepping import IMAGES, STEPS_PER_EPOCH, assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import algorithm_1, cosine, reference, tiny_encoder
from tests.ranks import run_ranks

SET = IMAGES * STEPS_PER_EPOCH
OPTIONS = {"dim": 6, "projector_layers": 2}


def build(momentum: float = 0.8) -> MovingAverageSimSiam:
    torch.manual_seed(1)
    return MovingAverageSimSiam(tiny_encoder(), momentum=momentum, **OPTIONS)


def batches(steps: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Views (2, IMAGES, 3, 8, 8) and samples (IMAGES,): each image once an epoch, in another order in each."""
    generator = torch.Generator().manual_seed(3)
    epochs = -(-steps // STEPS_PER_EPOCH)
    order = torch.cat([torch.randperm(SET, generator=generator) for _ in range(epochs)]).split(IMAGES)
    return [(views.to(dtype), samples) for (views,), samples in zip(some_batches(steps, (2, 8)), order)]


def by_images(model: SimSiam, views: Tensor, samples: Tensor, eta: dict[int, Tensor], m: float) -> Tensor:
    """eta <- m eta + (1 - m) z(other view) for either view, image by image; what is kept is the mean of the two."""
    z1, z2 = (model.projector(model.encoder(x)) for x in views)
    targets1, targets2 = z2.detach().clone(), z1.detach().clone()
    for row, sample in enumerate(samples.tolist()):
        if sample in eta:
            targets1[row] = m * eta[sample] + (1 - m) * targets1[row]
            targets2[row] = m * eta[sample] + (1 - m) * targets2[row]
        eta[sample] = (targets1[row] + targets2[row]) / 2
    return cosine(z1, targets1) / 2 + cosine(z2, targets2) / 2


def test_losses_gradients_and_averages_are_those_of_each_image_by_itself() -> None:
    model = build()
    model.prepare(SET, IMAGES)
    exact, eta = reference(model), {}
    for step, (views, samples) in enumerate(batches(10)):
        model.zero_grad()
        exact.zero_grad()
        loss = model(views, samples).loss
        loss.backward()
        expected = by_images(exact, views.double(), samples, eta, 0.8)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5), step
        for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), (step, name)
            p.data -= 0.5 * p.grad
            q.data.copy_(p.data)
        assert model.visited.nonzero().flatten().tolist() == sorted(eta)
        kept = torch.stack([eta[sample] for sample in sorted(eta)])
        torch.testing.assert_close(model.eta[model.visited].double(), kept, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_without_an_average_it_is_simsiam_without_predictor(momentum: float) -> None:
    model = build(momentum)
    model.prepare(SET, IMAGES)
    plain = reference(model)
    assert isinstance(plain.predictor, torch.nn.Identity)
    for step, (views, samples) in enumerate(batches(STEPS_PER_EPOCH + 1)):
        loss, expected = model(views, samples).loss.item(), algorithm_1(plain, *views.double()).item()
        same = momentum == 0 or step < STEPS_PER_EPOCH  # an image's first visit has nothing to average with
        assert (loss == pytest.approx(expected, abs=1e-5)) is same, step


def whole() -> tuple:
    return outcome(build, batches(6, torch.float64))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_make_the_steps_of_one_and_keep_the_same_averages(ranks: int) -> None:
    alone = whole()
    assert alone[2]["model.eta"].abs().sum(1).min() > 0
    together = run_ranks(ranks, whole)
    for each in together:
        assert_same(each, alone, atol=1e-5)
        assert torch.equal(each[2]["model.eta"], together[0][2]["model.eta"])


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_stops_goes_on_bit_equal_with_its_averages(stop: int) -> None:
    straight = start(build())
    go_on(straight, batches(8))
    after = resumed(build, batches(8), stop)
    assert {"model.eta", "model.visited"} <= after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, straight.tensors()[name]), name


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_that_is_no_average_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match="at least 0 and below 1"):
        build(momentum)
