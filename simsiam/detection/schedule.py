"""Detectron2's learning rate: a warm-up from a part of the rate, then steps down."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepSchedule:
    """A learning rate over the steps of a run.

    Attributes:
        peak: the rate between warm-up and the first milestone, as the optimiser sees it.
        warmup_factor: the part of the rate at step 0, from which it rises in a line over `warmup_steps`.
        milestones: steps at which it is multiplied by `decay`.
    """

    peak: float
    warmup_steps: int
    warmup_factor: float
    milestones: tuple[int, ...]
    decay: float
    shape: str = "steps"

    def at(self, step: int) -> float:
        """Rate of step `step`, counted from 0."""
        done = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        passed = sum(step >= milestone for milestone in self.milestones)
        return self.peak * (self.warmup_factor * (1 - done) + done) * self.decay**passed
