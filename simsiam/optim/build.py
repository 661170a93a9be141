"""Named parameter groups -> SGD, LARS, Adam or AdamW, with every group's schedule."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from simsiam.optim.lars import Lars
from simsiam.optim.schedule import Schedule
from simsiam.settings.tree import Optim


def build_optimizer(
    groups: dict[str, list[nn.Parameter]],
    optim: Optim,
    peak_lr: float,
    epochs: int,
    steps_per_epoch: int,
    rates: Mapping[str, float] | None = None,
) -> tuple[torch.optim.Optimizer, list[Schedule]]:
    """The optimiser and the schedule of each of its parameter groups, in order.

    `peak_lr` is the peak of all groups but those that `rates` names with one of their own.
    Momentum buffers and Adam's moments exist from the start, as zeros: the first update is the same to the bit, and a
    checkpoint has the same tensors at every step.
    """
    moving = Schedule(
        peak_lr, epochs, steps_per_epoch, optim.schedule, optim.per == "epoch", optim.warmup_epochs, optim.milestones,
        optim.decay, optim.final_lr * peak_lr / optim.lr if optim.lr else 0.0,
    )  # fmt: skip
    constant = Schedule(peak_lr, epochs, steps_per_epoch, "constant")
    param_groups, schedules = [], []
    for name, parameters in groups.items():
        held = name.endswith("predictor") and optim.predictor_lr == "constant"
        schedule = replace(constant if held else moving, peak=(rates or {}).get(name, peak_lr))
        for suffix, members, plain in _by_dimension(parameters, optim.exclude_1d):
            group = {"params": members, "name": name + suffix, "weight_decay": 0.0 if plain else optim.weight_decay}
            if optim.name == "lars" and not plain:
                group |= {"adapted_decay": optim.weight_decay, "weight_decay": 0.0}
            param_groups.append(group)
            schedules.append(schedule)
    if optim.name in ("adam", "adamw"):
        kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
        optimizer = kind(param_groups, lr=peak_lr, betas=(optim.momentum, 0.999), fused=True)
        begin_moments(optimizer)
        return optimizer, schedules
    if optim.name == "lars":
        optimizer = Lars(param_groups, peak_lr, optim.momentum, optim.trust_coefficient)
    else:
        optimizer = torch.optim.SGD(param_groups, lr=peak_lr, momentum=optim.momentum, fused=True)
    if optim.momentum:
        begin_momentum(optimizer)
    return optimizer, schedules


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter its momentum buffer, of zeros."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def begin_moments(optimizer: torch.optim.Adam) -> None:
    """Gives every parameter its moments, of zeros, and its count of steps."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # The fused kernel counts on the parameter's device.
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": count, **moments}


def _by_dimension(parameters: list[nn.Parameter], exclude_1d: bool) -> list[tuple[str, list[nn.Parameter], bool]]:
    if not exclude_1d:
        return [("", parameters, False)]
    split = ("", [p for p in parameters if p.dim() > 1], False), ("/1d", [p for p in parameters if p.dim() <= 1], True)
    return [part for part in split if part[1]]
