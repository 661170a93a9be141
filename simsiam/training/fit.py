"""The loop of a classifier: step, then by the clock log, validate and save. lincls.py and semisup.py share it."""

from collections.abc import Callable

from torch import Tensor

from simsiam.checkpoint.manager import Checkpoints
from simsiam.data.image_set import ImageSet
from simsiam.data.loaders import Crops, Loader
from simsiam.run.journal import Journal
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Classify
from simsiam.training.clock import Clock, due
from simsiam.training.finite import FiniteGuard
from simsiam.training.state import TrainState
from simsiam.training.step import train_step


def fit(
    state: TrainState,
    loader: Loader,
    inputs: Callable[[Crops], tuple[Tensor, Tensor]],
    validate: Callable[[], None],
    *,
    images: ImageSet,
    journal: Journal,
    checkpoints: Checkpoints,
    settings: Classify,
    numbers: Numbers,
) -> None:
    """Trains from `state.step` to `numbers.stop_step`. Every rank must call it.

    Args:
        inputs: a micro-batch of the loader -> what the model is called with, on the device.
        validate: measures and notes the answer; called every `val_every` epochs and after the last step.
        images: what the loader reads, for the names of those that cannot be read.

    Raises:
        TrainingStopped: the loss or a gradient was not finite.
    """
    device = state.precision.device
    clock, guard, spe = Clock(numbers.global_batch), FiniteGuard(device), numbers.steps_per_epoch
    if state.step == numbers.stop_step:
        validate()  # an earlier run was cut off between its last save and its last answer
    for micro_batches in clock.timed(loader.steps(state.step, numbers.stop_step)):
        result = train_step(state, map(inputs, micro_batches))
        guard.watch(state.step, result.finite)
        journal.stepped(micro_batches, images)
        step, last = state.step, state.step == numbers.stop_step

        logs, validates = (last or due(step, every) for every in (settings.log_every, settings.val_every * spe))
        saves = last or due(step, settings.checkpoint.every_steps) or due(step, settings.checkpoint.every_epochs * spe)
        if logs or validates or saves:
            journal.stop_unless_finite(guard, checkpoints.newest)
        if logs:
            journal.log(state, result, clock, {})
        if validates:
            validate()
            clock.restart()
        if saves:
            checkpoints.save(state)
            clock.restart()
