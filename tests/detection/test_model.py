"""What trains: losses in one number, groups of parameters, and exact statistics that leave no trace."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from simsiam.data.plan import Plan
from simsiam.detection.batches import Batch, TrainingBatches
from simsiam.detection.model import TrainedDetector, build_detector_state, derive_steps, detector_arguments
from simsiam.detection.rcnn import build_detector
from simsiam.detection.sets import open_sets
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.models.encoders import build_encoder
from simsiam.settings.detect import Detect, StepOptim
from simsiam.training.step import train_step
from tests.detection.conftest import settings

ALONE = Runtime(0, 1, 0, torch.device("cpu"))


def detector(run: Detect, classes: int = 10) -> TrainedDetector:
    torch.manual_seed(0)
    return TrainedDetector(
        build_detector(build_encoder("resnet18", zero_init_residual=False), classes, **detector_arguments(run))
    )


@pytest.fixture
def run(voc: Path) -> Detect:
    return settings(voc)


@pytest.fixture
def batches(run: Detect) -> list[Batch]:
    data = open_sets(run)
    plan = Plan(len(data.train), run.batch_size, 0)
    return [batch for (batch,) in TrainingBatches(data.train, plan, run, ALONE.device).steps(0, 3)]


def test_the_seed_of_a_batch_decides_all_that_is_drawn(run: Detect, batches: list[Batch]) -> None:
    model = detector(run)
    one, again, other = (
        model(batches[0].images, batches[0].targets, seed).loss.item() for seed in (batches[0].seed, batches[0].seed, 5)
    )
    assert one == again != other


def test_the_loss_is_the_weighted_sum_of_its_parts(run: Detect, batches: list[Batch]) -> None:
    model = detector(run)
    plain = model(*batches[0][:2], 7)
    assert plain.loss.item() == pytest.approx(sum(plain.losses.values()).item())
    lighter = TrainedDetector(model.rcnn, proposal_loss=0.2)(*batches[0][:2], 7)
    parts = plain.losses
    spared = 0.8 * (parts["loss_objectness"] + parts["loss_rpn_box_reg"])
    assert lighter.loss.item() == pytest.approx((plain.loss - spared).item())


def test_batch_norm_alone_is_spared_decay_and_every_parameter_trains(run: Detect, batches: list[Batch]) -> None:
    optim = StepOptim(lr=0.04, weight_decay=0.5, milestones=(1,), warmup_steps=0)
    run = settings(Path(run.data), optim=optim, batch_size=8)
    model = detector(run)
    state = build_detector_state(model, run, derive_steps(run, 1, 8), ALONE)
    whole, norm = state.optimizer.param_groups
    assert {id(p) for g in (whole, norm) for p in g["params"]} == {id(p) for p in model.parameters()}
    assert sum(map(len, (whole["params"], norm["params"]))) == len(list(model.parameters()))
    norms = [m for m in model.modules() if isinstance(m, ViewBatchNorm)]
    assert {id(p) for p in norm["params"]} == {id(p) for m in norms for p in (m.weight, m.bias)}
    assert (whole["weight_decay"], norm["weight_decay"]) == (0.5, 0)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_step(state, [(batches[0].images, batches[0].targets, 1)])
    assert whole["lr"] == pytest.approx(0.04 * 8 / 16)
    assert [name for name, p in model.named_parameters() if torch.equal(before[name], p)] == []
    train_step(state, [(batches[1].images, batches[1].targets, 2)])
    assert whole["lr"] == pytest.approx(0.002)


def test_exact_statistics_are_there_inside_and_gone_outside(run: Detect, batches: list[Batch]) -> None:
    model = detector(run)
    layer = model.rcnn.backbone.bn1
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().transpose(0, 1).flatten(1)))
    held = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def outside() -> Iterator[str]:
        return (name for name, buffer in model.named_buffers() if not torch.equal(held[name], buffer))

    with pytest.raises(ZeroDivisionError), model.exact_statistics(batches, 3):
        numbers = torch.cat(seen, dim=1).double()
        torch.testing.assert_close(layer.running_mean.double(), numbers.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), numbers.var(1, correction=0), rtol=1e-5, atol=1e-6)
        raise ZeroDivisionError
    assert list(outside()) == []
    hook.remove()
    with model.exact_statistics((), 0):
        assert list(outside()) == []


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"batch_size": 9}, "larger than the training set of 8"),
        ({"batch_size": 5, "accumulate": 2}, "take 4 or 6"),
    ],
)
def test_numbers_that_do_not_work_out(voc: Path, others: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        derive_steps(settings(voc, **others), 1, 8)
