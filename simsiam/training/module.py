"""What the training step asks of a module besides its loss."""

from collections.abc import Collection
from typing import NamedTuple

from torch import nn


class Moment(NamedTuple):
    """Where a run is: the step at hand, from 0, and how many there are."""

    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> float:
        """Epochs done when the step begins."""
        return self.step / self.steps_per_epoch

    @property
    def done(self) -> float:
        """Part of the run that is over when the step has ended, in 0..1."""
        return (self.step + 1) / self.total_steps


class Trainable(nn.Module):
    """Base of what `train_step` moves. Calling it returns a named tuple or dataclass with `loss`, a float32 scalar."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group, which are rates and decay of their own."""
        return {"encoder": [p for p in self.parameters() if p.requires_grad]}

    def before_step(self, at: Moment) -> None:
        """Called before the forward passes of a step, on every rank."""

    def moving_groups(self, at: Moment) -> Collection[str] | None:
        """The groups that the step moves; None is all. The gradients of the others are dropped."""
        return None

    def after_step(self, at: Moment) -> None:
        """Called after the optimiser has moved: moving averages and the like."""
