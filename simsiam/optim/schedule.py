"""Step -> learning rate, a pure function: nothing to save, anything to plot and test."""

import math
from dataclasses import dataclass
from typing import Protocol


class RateOverTime(Protocol):
    """What training asks of a schedule: the rate of a step, and for the banner its top and a word for its shape."""

    @property
    def peak(self) -> float: ...

    @property
    def shape(self) -> str: ...

    def at(self, step: int) -> float: ...


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the steps of a run.

    Attributes:
        peak: the rate at the top, as the optimiser sees it.
        shape: `cosine` to `final`, `steps` (x `decay` at each of `milestones`, in epochs), or `constant`.
        per_epoch: hold the cosine still within an epoch, as the official code does.
        warmup_epochs: linear rise from peak / steps to peak, moved every step.
    """

    peak: float
    epochs: int
    steps_per_epoch: int
    shape: str = "cosine"
    per_epoch: bool = True
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    final: float = 0.0

    def at(self, step: int) -> float:
        """Rate of step `step`, counted from 0. Cosine to 0: peak/2 (1 + cos(pi e/E)), e in epochs (SimSiam, 3)."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if step < warmup_steps:
            return self.peak * min(1.0, (step + 1) / warmup_steps)
        epoch = step / self.steps_per_epoch
        if self.shape == "constant":
            return self.peak
        if self.shape == "steps":
            return self.peak * self.decay ** sum(epoch >= m for m in self.milestones)
        if self.per_epoch:
            epoch = math.floor(epoch)
        progress = max(0.0, epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final + (self.peak - self.final) * share
