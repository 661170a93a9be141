"""A module and its settings -> the state that training moves: device, layout, data parallelism, optimiser."""

import inspect
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simsiam.distributed.runtime import Runtime
from simsiam.optim.build import build_optimizer
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Run
from simsiam.training.module import Trainable
from simsiam.training.precision import Precision
from simsiam.training.state import TrainState

# Renamed in torch 2.14, which warns of the old name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


def count_parameters(module: nn.Module) -> int:
    """Numbers in the parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def build_state(
    module: Trainable,
    settings: Run,
    numbers: Numbers,
    runtime: Runtime,
    rates: Mapping[str, float] | None = None,
) -> TrainState:
    """The state at step 0.

    `rates` gives a parameter group another peak learning rate than `numbers.peak_lr`.
    """
    module.to(runtime.device, memory_format=torch.channels_last).train()
    optimizer, schedules = build_optimizer(
        module.parameter_groups(), settings.optim, numbers.peak_lr, settings.epochs, numbers.steps_per_epoch, rates
    )
    model = data_parallel(module, runtime, static_graph=settings.accumulate == 1, fixed_buckets=settings.deterministic)
    precision = Precision(settings.precision, runtime.device)
    return TrainState(
        module, model, optimizer, schedules, precision, numbers.steps_per_epoch, numbers.total_steps,
        settings.accumulate, reduces_bf16=settings.reduce_dtype == "bf16",
    )  # fmt: skip


def data_parallel(module: nn.Module, runtime: Runtime, *, static_graph: bool, fixed_buckets: bool = False) -> nn.Module:
    """The module as it is on one rank, else wrapped so that gradients are averaged over the ranks.

    `static_graph`: each backward pass goes through the same layers, and is followed by a step. `fixed_buckets`:
    gradients cross in the same pieces from the first step on. DDP makes them anew after it, in the order in which
    gradients came, and where in a piece a number lies decides in which order more than two ranks' are added: a run that
    goes on from a checkpoint would differ from an undisturbed one by that.
    """
    if runtime.world_size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[runtime.device] if runtime.device.type == "cuda" else None,
        # Batch-norm statistics are the same on all ranks already: they are made from all ranks' images.
        **{_SYNC_BUFFERS: False},
        gradient_as_bucket_view=True,
        static_graph=static_graph and not fixed_buckets,
        find_unused_parameters=fixed_buckets,  # DDP keeps its pieces with this alone
    )
