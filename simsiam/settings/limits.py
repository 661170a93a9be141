"""The numbers that a setting may be, beyond its type: looked at as a command line is read, before anything starts."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from simsiam.errors import UserError
from simsiam.settings.tree import Job, Pretrain, Run
from simsiam.settings.view_recipes import check_views
from simsiam.settings.wall_time import wall_seconds


class _Limit(NamedTuple):
    least: float
    most: float = math.inf
    is_open: bool = False  # whether the least is not one of them

    def __str__(self) -> str:
        below = f" and at most {self.most:g}" if self.most < math.inf else ""
        return f"{'above' if self.is_open else 'at least'} {self.least:g}{below}"

    def holds(self, value: float) -> bool:
        above = value > self.least if self.is_open else value >= self.least
        return above and value <= self.most and value != math.inf


_LIMITS = {
    **dict.fromkeys((
        "accumulate", "batch_size", "checkpoint.keep", "dali.prefetch", "epochs", "iterations", "knn.k", "shots",
        "shuffle_buffer", "sizes.anchor_batch", "sizes.longest", "sizes.post_nms", "sizes.pre_nms",
        "sizes.region_batch", "sizes.region_side", "sizes.test", "sizes.train", "trials", "views.resize",
    ), _Limit(1)),
    **dict.fromkeys((
        "checkpoint.every_epochs", "checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep_every_epochs",
        "dali.threads", "hang_timeout", "held_out", "knn_every", "log_every", "max_steps", "optim.decay",
        "optim.final_lr", "optim.head_lr", "optim.lr", "optim.milestones", "optim.norm_weight_decay",
        "optim.trust_coefficient", "optim.warmup_epochs", "optim.warmup_steps", "optim.weight_decay", "precise_bn",
        "profile", "proposal_loss", "small_views.count", "test_every", "val_every", "visualize", "workers",
        "world_size",
    ), _Limit(0)),
    "seed": _Limit(0, 2**63 - 1),
    **dict.fromkeys(("dali.hw_decoder_load", "flip", "mean", "optim.momentum", "optim.warmup_factor"), _Limit(0, 1)),
    **dict.fromkeys(("inverse_l2", "knn.temperature", "sizes.anchors", "std"), _Limit(0, is_open=True)),
}  # fmt: skip


def check_limits(settings: Job) -> None:
    """Raises UserError for a number that no run can have."""
    for key, value in _leaves(settings):
        for number in value if isinstance(value, tuple) else (value,):
            if key in _LIMITS and number is not None and not _LIMITS[key].holds(number):
                raise UserError(f"--{key.replace('_', '-')} is {number:g}; it must be {_LIMITS[key]}")
    wall_seconds(settings.max_wall_time)
    if isinstance(settings, Pretrain) and settings.batch_size // settings.accumulate < 2:
        raise UserError(
            f"--batch-size {settings.batch_size} in {settings.accumulate} part(s) leaves batch-norm a single image; "
            "take a larger one"
        )
    if isinstance(settings, Run):
        if settings.optim.final_lr and not settings.optim.lr:
            raise UserError(f"--optim.final-lr is {settings.optim.final_lr:g}; give --optim.lr above 0 with it")
        check_views(settings.views)


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in fields(section):
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value
