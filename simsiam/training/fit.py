"""The loop of what is trained with labels: step, then by the clock log, save and evaluate."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from simsiam.checkpoint.manager import Checkpoints
from simsiam.data.stand_ins import Named, WithStandIns
from simsiam.distributed.runtime import Runtime
from simsiam.run.journal import Journal
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Job
from simsiam.training.clock import Clock, due
from simsiam.training.keeper import Keeper
from simsiam.training.state import TrainState
from simsiam.training.step import StepResult, train_step

Batch = TypeVar("Batch", bound=WithStandIns)


def fit(
    state: TrainState,
    steps: Callable[[int, int], Iterator[list[Batch]]],
    inputs: Callable[[Batch], tuple],
    evaluate: Callable[[], None],
    *,
    every: int,
    images: Named,
    journal: Journal,
    checkpoints: Checkpoints,
    settings: Job,
    numbers: Numbers,
    runtime: Runtime,
    measures: Callable[[StepResult], dict[str, float]] = lambda _: {},
) -> None:
    """Trains from `state.step` to `numbers.stop_step`. Every rank must call it.

    Args:
        steps: a loader's: (start, stop) -> the micro-batches of each step.
        inputs: a micro-batch -> what the model is called with, on the device.
        evaluate: measures and notes the answer; called every `every` steps and after the last step. 0: only there.
        images: what the loader reads, for the names of those that cannot be read.
        measures: of a step, for the log; every rank calls it.

    Raises:
        TrainingStopped: the loss or a gradient was not finite.
    """
    clock = Clock(numbers.global_batch)
    # An earlier run was cut off, or asked to end, between a save and the answer that was due.
    if state.step == numbers.stop_step or (due(state.step, every) and journal.lacks_answer(state.step)):
        evaluate()
        clock.restart()
    with Keeper(settings, numbers, runtime, state, checkpoints, journal, clock) as keeper:
        for micro_batches in clock.timed(steps(state.step, numbers.stop_step)):
            result = train_step(state, map(inputs, micro_batches))
            now = keeper.stepped(result)
            journal.stepped(micro_batches, images)
            if now.logs:
                journal.log(state, result, clock, measures(result))
            if now.saves:
                keeper.save()
            if now.last or due(state.step, every):
                with keeper.evaluating("validation"):
                    evaluate()
