"""Every setting of transfer/detect.py; the text is its `--help`. Defaults are Detectron2's where MoCo leaves them."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from simsiam.settings.tree import Checkpoint, Job


@dataclass(frozen=True)
class StepOptim:
    """The optimiser, its rate lowered at some steps."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the papers; adamw learns more from few images, its first beta is `momentum`."""
    lr: float = 0.02
    """Learning rate for 16 images a step; the optimiser gets lr x batch_size / 16."""
    momentum: float = 0.9
    """Momentum, without dampening or Nesterov."""
    weight_decay: float = 1e-4
    """Weight decay, added to the gradient (sgd) or beside it (adamw), of all but batch-norm."""
    norm_weight_decay: float = 0.0
    """Weight decay of batch-norm's scales and shifts."""
    warmup_steps: int = 1000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.001
    """Part of the rate that warm-up begins with."""
    milestones: tuple[int, ...] = ()
    """Steps at which the rate is multiplied by `decay`."""
    decay: float = 0.1
    """What the rate is multiplied by at a milestone."""


@dataclass(frozen=True)
class Sizes:
    """Pixels and numbers of the detector."""

    train: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Shorter sides that a training image is resized to, one drawn for each image, pixels."""
    test: int = 800
    """Shorter side of a test image, pixels."""
    longest: int = 1333
    """The most of the longer side, pixels."""
    anchors: tuple[float, ...] = (32, 64, 128, 256, 512)
    """Sides of the square anchors, pixels; fpn takes one for each of its five maps."""
    anchor_batch: int = 256
    """Anchors of an image that the proposal losses sample."""
    region_batch: int = 512
    """Regions of an image that the second stage's losses sample."""
    region_side: int | None = None
    """Cells to a side of what is cropped for a region; c4: 14, fpn: 7."""
    pre_nms: tuple[int, int] | None = None
    """Proposals before suppression in training and in testing; c4: 12000 and 6000, fpn: 2000 and 1000 of each map."""
    post_nms: tuple[int, int] | None = None
    """Proposals after suppression in training and in testing; c4: 2000 and 1000, fpn: 1000 and 1000."""


@dataclass(frozen=True)
class Detect(Job):
    """Settings of transfer/detect.py. Every layer trains, with batch-norm over the images of all ranks."""

    data: str = ""
    """Folder of VOC (with VOC2007, VOC2012) or of COCO (with annotations, train2017, val2017), or `shapes`, which is
    built in. Default: $DATA."""
    train_sets: tuple[str, ...] = ("voc_2007_trainval",)
    """What to train on: voc_YEAR_LIST, several of which count as one set, or one coco_2017_train."""
    test_set: str = "voc_2007_test"
    """What to test on: voc_YEAR_LIST (2007: 11-point AP, else area), or coco_2017_val."""
    pretrained: str = ""
    """Encoder to begin with: run folder, encoder file or official checkpoint; `random` takes random weights."""
    encoder: str = ""
    """Name of the encoder where the file does not say it."""
    head: Literal["c4", "fpn"] = "c4"
    """c4: layer4 over each region; fpn: a feature pyramid and two linear layers."""
    mask: bool = False
    """Mask R-CNN: find outlines too. COCO only."""
    extra_norm: bool = True
    """Batch-norm in what is new: behind layer4 (c4), in the pyramid's convolutions (fpn)."""
    proposal_loss: float = 1.0
    """Weight of the two losses of the proposal network; VICReg takes 0.2."""
    batch_size: int = 16
    """Images per optimiser step over all ranks, nodes and micro-batches."""
    iterations: int = 24_000
    """Optimiser steps of the run and of the learning-rate schedule."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue that normalisation subtracts, in 0..1; default: the encoder file's, or ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that normalisation divides by; default: the encoder file's, or ImageNet's."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    precise_bn: int = 200
    """Training batches that batch-norm statistics are computed from before each test; 0 keeps running averages."""
    test_every: int = 0
    """Steps between tests; 0 tests at the end alone."""
    trials: int = 1
    """Runs with seeds `seed`, seed + 1, ..., of which mean and standard deviation are reported; VOC's are of 5."""
    visualize: int = 0
    """Test images that are drawn with what was found and what is true, into OUT/detections."""
    evaluate_only: bool = False
    """Only test the detector of the run folder."""
    sizes: Sizes = field(default_factory=Sizes)
    optim: StepOptim = field(default_factory=StepOptim)
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(every_epochs=0, every_steps=1000))

    def debugged(self, world_size: int) -> Self:
        batch = max(2, world_size) * self.accumulate
        few = min(self.precise_bn, 2)
        return replace(super().debugged(world_size), batch_size=batch, precise_bn=few, visualize=max(self.visualize, 2))
