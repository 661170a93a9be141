"""The loop of a classifier: step, then by the clock log, validate and save. lincls.py and semisup.py share it."""

from collections.abc import Callable

from torch import Tensor

from simsiam.checkpoint.manager import Checkpoints
from simsiam.data.crops import Crops, Loader
from simsiam.data.image_set import ImageSet
from simsiam.distributed.runtime import Runtime
from simsiam.run.journal import Journal
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Classify
from simsiam.training.clock import Clock, due
from simsiam.training.keeper import Keeper
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
    runtime: Runtime,
) -> None:
    """Trains from `state.step` to `numbers.stop_step`. Every rank must call it.

    Args:
        inputs: a micro-batch of the loader -> what the model is called with, on the device.
        validate: measures and notes the answer; called every `val_every` epochs and after the last step.
        images: what the loader reads, for the names of those that cannot be read.

    Raises:
        TrainingStopped: the loss or a gradient was not finite.
    """
    clock = Clock(numbers.global_batch)
    every = settings.val_every * numbers.steps_per_epoch
    # An earlier run was cut off, or asked to end, between a save and the answer that was due.
    if state.step == numbers.stop_step or (due(state.step, every) and journal.lacks_answer(state.step)):
        validate()
        clock.restart()
    with Keeper(settings, numbers, runtime, state, checkpoints, journal, clock) as keeper:
        for micro_batches in clock.timed(loader.steps(state.step, numbers.stop_step)):
            result = train_step(state, map(inputs, micro_batches))
            now = keeper.stepped(result)
            journal.stepped(micro_batches, images)
            if now.logs:
                journal.log(state, result, clock, {})
            if now.saves:
                keeper.save()
            if now.last or due(state.step, every):
                with keeper.evaluating("validation"):
                    validate()
