"""A detector as it trains: the losses of a batch in one number, rates and decay by group, exact batch-norm to test."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from simsiam.detection.batches import Batch, Target
from simsiam.detection.precise_bn import update_batchnorm_statistics
from simsiam.detection.schedule import StepSchedule
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.pretrained import pixel_statistics
from simsiam.models.batchnorm import ViewBatchNorm, per_view_batchnorm
from simsiam.optim.build import begin_moments, begin_momentum
from simsiam.settings.derive import Numbers, check_batch, numbers_of
from simsiam.settings.detect import Detect
from simsiam.training.build import data_parallel
from simsiam.training.module import Trainable
from simsiam.training.precision import Precision
from simsiam.training.state import TrainState

_OF_PROPOSALS = ("loss_objectness", "loss_rpn_box_reg")


class DetectorOutput(NamedTuple):
    """loss: float32 scalar, the weighted sum; losses: the parts by torchvision's names, detached, without weights."""

    loss: Tensor
    losses: dict[str, Tensor]


class TrainedDetector(Trainable):
    """A detector of `build_detector` with batch-norm over the images of all ranks; takes it over."""

    def __init__(self, rcnn: GeneralizedRCNN, proposal_loss: float = 1.0) -> None:
        super().__init__()
        self.rcnn = per_view_batchnorm(rcnn, views=1)
        self._proposal_loss = proposal_loss

    def forward(self, images: list[Tensor], targets: list[Target], seed: int) -> DetectorOutput:
        """Images uint8 (3, H, W) of any size, targets as in `Batch`; `seed` is for sizes and sampling."""
        torch.manual_seed(seed)
        losses = self.rcnn([as_float(image) for image in images], targets)
        weighted = (self._proposal_loss * v if name in _OF_PROPOSALS else v for name, v in losses.items())
        return DetectorOutput(sum(weighted), {name: value.detach() for name, value in losses.items()})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in two: `detector`, and `norm` of batch-norm, which decays at a rate of its own."""
        norms = [p for m in self.modules() if isinstance(m, ViewBatchNorm) for p in m.parameters()]
        return {"detector": [p for p in self.parameters() if p not in set(norms)], "norm": norms}

    @contextmanager
    def exact_statistics(self, batches: Iterable[Batch], num: int) -> Iterator[None]:
        """Inside, batch-norm has the statistics of `num` batches under the weights as they are (PreciseBN).

        Outside it has its running averages, so that testing leaves no trace in training. Every rank must call it.
        """
        held = [t for m in self.modules() if isinstance(m, ViewBatchNorm) for t in m.buffers()]
        running = [t.clone() for t in held]
        update_batchnorm_statistics(self, ((b.images, b.targets, b.seed) for b in batches), num)
        try:
            yield
        finally:
            for buffer, value in zip(held, running, strict=True):
                buffer.copy_(value)


def detector_arguments(settings: Detect) -> dict[str, Any]:
    """What `build_detector` makes the settings' detector of, besides encoder and classes; JSON can hold it."""
    sizes = settings.sizes
    mean, std = pixel_statistics(settings)
    return {
        "head": settings.head,
        "mask": settings.mask,
        "extra_norm": settings.extra_norm,
        "min_size": sizes.train,
        "test_size": sizes.test,
        "max_size": sizes.longest,
        "image_mean": mean,
        "image_std": std,
        "anchor_sizes": sizes.anchors,
        "pre_nms": sizes.pre_nms,
        "post_nms": sizes.post_nms,
        "anchor_batch": sizes.anchor_batch,
        "region_batch": sizes.region_batch,
        "region_side": sizes.region_side,
    }


def as_float(image: Tensor) -> Tensor:
    """uint8 0..255 as float32 0..1."""
    return image.float().div_(255)


def derive_steps(settings: Detect, world_size: int, num_images: int) -> Numbers:
    """The numbers of a run whose length is in steps. Raises UserError where they do not work out."""
    check_batch(settings, world_size, num_images)
    peak_lr = settings.optim.lr * settings.batch_size / 16
    return numbers_of(settings, world_size, num_images, settings.iterations, peak_lr)


def build_detector_state(module: TrainedDetector, settings: Detect, numbers: Numbers, runtime: Runtime) -> TrainState:
    """The state at step 0: the optimiser, batch-norm's parameters with a decay of their own."""
    module.to(runtime.device, memory_format=torch.channels_last).train()
    optim = settings.optim
    decays = {"detector": optim.weight_decay, "norm": optim.norm_weight_decay}
    groups = [
        {"params": parameters, "name": name, "weight_decay": decays[name]}
        for name, parameters in module.parameter_groups().items()
    ]
    if optim.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=numbers.peak_lr, betas=(optim.momentum, 0.999), fused=True)
        begin_moments(optimizer)
    else:
        optimizer = torch.optim.SGD(groups, lr=numbers.peak_lr, momentum=optim.momentum, fused=True)
        begin_momentum(optimizer)
    schedule = StepSchedule(numbers.peak_lr, optim.warmup_steps, optim.warmup_factor, optim.milestones, optim.decay)
    # Which layers take part varies with the regions that are drawn: the graph is not static.
    model = data_parallel(module, runtime, static_graph=False)
    precision = Precision(settings.precision, runtime.device)
    return TrainState(
        module, model, optimizer, [schedule] * len(groups), precision, numbers.steps_per_epoch, numbers.total_steps,
        settings.accumulate,
    )  # fmt: skip
