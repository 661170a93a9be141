"""Everything a run is made of besides its settings. What is here is saved; nothing else needs to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simsiam.optim.schedule import RateOverTime
from simsiam.training.finite import OwnGradients
from simsiam.training.module import Trainable
from simsiam.training.precision import Precision


@dataclass
class TrainState:
    """The state of training; `step` is also the position in the data.

    Attributes:
        module: the network with its loss, as the checkpoint names it.
        model: the same, wrapped for data parallelism where there are ranks to share with.
        schedules: the learning rate of each of the optimiser's groups, in order.
        steps_per_epoch, total_steps: of the schedule.
        step: optimiser steps done, and so the number of the next one.
        reduces_bf16: whether ranks average gradients in bfloat16.
        own_gradients: looks at this rank's gradients before they are averaged, where there are ranks.
    """

    module: Trainable
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedules: Sequence[RateOverTime]
    precision: Precision
    steps_per_epoch: int
    total_steps: int
    accumulate: int = 1
    step: int = 0
    reduces_bf16: bool = False
    own_gradients: OwnGradients | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.model, DistributedDataParallel):
            self.own_gradients = OwnGradients(self.model, self.precision.device, self.reduces_bf16)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of all that a checkpoint holds; loading fills these in place, then calls `restore`.

        Model: parameters and buffers (batch-norm statistics, and whatever queue or average a method keeps).
        Optimiser: momentum. Scaler: scale and growth count. Step.
        """
        held = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        held.update({f"optimizer.{name}": tensor for name, tensor in self._momenta()})
        self._scale = torch.tensor([self.precision.scaler.get_scale(), float(self._growth())])
        self._step = torch.tensor(self.step)
        return {**held, "scaler": self._scale, "step": self._step}

    def restore(self) -> None:
        """Takes over the numbers that are no tensors, after a load has filled `tensors()`."""
        self.step = int(self._step)
        if self.precision.scaler.is_enabled():
            scale, growth = self._scale.tolist()
            scaler = self.precision.scaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(growth)})

    def _growth(self) -> int:
        return self.precision.scaler.state_dict().get("_growth_tracker", 0)

    def _momenta(self) -> Iterator[tuple[str, Tensor]]:
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for parameter, entries in self.optimizer.state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    yield f"{names[parameter]}.{key}", value
