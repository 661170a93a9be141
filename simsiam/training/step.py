"""The training step: autocast, forward, backward, finite check, optimiser, moving averages.

Nothing here waits for the device.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from simsiam.training.module import Moment
from simsiam.training.state import TrainState

_LEAST_SCALE = 2.0**-14  # of fp16: thirty halvings of the first


class StepResult(NamedTuple):
    """Detached, on the device. `output` is the last micro-batch's, whatever the module returned, `loss` the mean.

    `finite` is that of loss and gradients over all ranks (of fp16, whose scale must find its place, of gradients only
    where the scale is least); `own_loss` and `own_gradients` tell whether those of this rank alone are finite.
    """

    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    own_loss: Tensor
    own_gradients: Tensor
    output: tuple


def train_step(state: TrainState, micro_batches: Iterable[tuple[Tensor, ...]]) -> StepResult:
    """One optimiser step over `state.accumulate` micro-batches of inputs to the model; the model returns `.loss`.

    Where the loss or a gradient is not finite on any rank no parameter moves on any; fp16 overflow alone is part of
    scaling.
    """
    for group, schedule in zip(state.optimizer.param_groups, state.schedules, strict=True):
        group["lr"] = schedule.at(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    at = Moment(state.step, state.steps_per_epoch, state.total_steps)
    state.module.before_step(at)
    scaler, losses = state.precision.scaler, []
    if state.own_gradients is not None:
        state.own_gradients.reset()
    for number, inputs in enumerate(micro_batches, start=1):
        # Gradients cross the ranks once a step, with the last micro-batch.
        waits = number < state.accumulate and isinstance(state.model, DistributedDataParallel)
        with state.model.no_sync() if waits else nullcontext():
            with state.precision.autocast():
                output = state.model(*inputs)
            loss = output.loss.detach()
            # Gradients of a loss that is not finite might be: all ranks must see by them that one rank is lost.
            spoiled = torch.where(loss.isfinite(), 1.0, torch.nan)
            scaler.scale(output.loss * spoiled / state.accumulate).backward()
        losses.append(loss)
    _hold_still(state, at)
    scaler.unscale_(state.optimizer)
    gradients = [p.grad for g in state.optimizer.param_groups for p in g["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    loss = torch.stack(losses).mean()
    finite = own_loss = own_gradients = loss.isfinite()
    if scaler.is_enabled():
        # A gradient that overflows is the scaler's business, which skips the step and lowers the scale; one that does
        # so by any scale would have it skip them all.
        finite = finite & (grad_norm.isfinite() | (scaler._get_scale_async() > _LEAST_SCALE))
    else:
        finite = finite & grad_norm.isfinite()
        own_gradients = finite if state.own_gradients is None else state.own_gradients.finite.clone()
    _update(state, finite)
    state.module.after_step(at)
    state.step += 1
    return StepResult(loss, grad_norm, finite, own_loss, own_gradients, output)


def _hold_still(state: TrainState, at: Moment) -> None:
    """Drops the gradients of groups that this step does not move: an optimiser passes over them, momentum and all."""
    moving = state.module.moving_groups(at)
    for group in state.optimizer.param_groups if moving is not None else ():
        if group["name"].partition("/")[0] not in moving:  # NAME/1d is a part of NAME
            for parameter in group["params"]:
                parameter.grad = None


def _update(state: TrainState, finite: Tensor) -> None:
    scaler, optimizer = state.precision.scaler, state.optimizer
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        # Optimisers take the flag on the device and leave everything as it is where it is set.
        optimizer.found_inf, optimizer.grad_scale = (~finite).float(), None
        optimizer.step()
