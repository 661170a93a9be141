"""The rate over the steps, against Detectron2's formula."""

import pytest

from simsiam.detection.schedule import StepSchedule
from simsiam.settings.detect import Detect
from simsiam.settings.parse import parse


def test_warm_up_rises_from_a_thousandth_and_milestones_divide() -> None:
    rate = StepSchedule(0.02, warmup_steps=100, warmup_factor=0.001, milestones=(18000, 22000), decay=0.1).at
    # WarmupMultiStepLR, method linear: lr x (factor (1 - alpha) + alpha) x gamma^passed, alpha = step / warm-up steps.
    assert rate(0) == pytest.approx(0.00002)
    assert rate(50) == pytest.approx(0.02 * (0.001 * 0.5 + 0.5))
    assert [rate(step) for step in (100, 17999, 18000, 21999, 22000)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002, 0.0002]
    )


def test_no_warm_up_begins_at_the_top() -> None:
    assert StepSchedule(0.1, 0, 0.001, (), 0.1).at(0) == 0.1


@pytest.mark.parametrize(
    ("recipe", "iterations", "milestones", "warmup", "sizes"),
    [
        ("voc07", 9000, (6750, 8250), 100, tuple(range(480, 801, 32))),
        ("voc0712", 24000, (18000, 22000), 100, tuple(range(480, 801, 32))),
        ("coco-1x", 90000, (60000, 80000), 1000, tuple(range(640, 801, 32))),
        ("coco-2x", 180000, (120000, 160000), 1000, tuple(range(640, 801, 32))),
        ("coco-fpn-1x", 90000, (60000, 80000), 1000, tuple(range(640, 801, 32))),
    ],
)
def test_the_recipes_hold_the_published_numbers(
    recipe: str, iterations: int, milestones: tuple, warmup: int, sizes: tuple
) -> None:
    settings = parse(Detect, ["--recipe", recipe], recipe="voc0712", prog="detect.py")
    optim = settings.optim
    assert (settings.iterations, optim.milestones, optim.warmup_steps) == (iterations, milestones, warmup)
    assert (settings.sizes.train, settings.sizes.test, settings.sizes.longest) == (sizes, 800, 1333)
    assert (settings.batch_size, optim.lr, optim.momentum, optim.weight_decay) == (16, 0.02, 0.9, 1e-4)
    assert (optim.norm_weight_decay, optim.warmup_factor, settings.precise_bn, optim.decay) == (0, 0.001, 200, 0.1)
    assert settings.mask == recipe.startswith("coco")
    assert (settings.sizes.anchor_batch, settings.sizes.region_batch, settings.extra_norm) == (256, 512, True)
