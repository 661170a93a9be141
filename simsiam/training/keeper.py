"""What keeps a run: saves by steps, minutes and epochs; ends in time when asked; and nothing bad is ever saved."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, NoReturn

from simsiam.checkpoint.manager import Checkpoints
from simsiam.distributed.agreement import Agreement, Wish
from simsiam.distributed.runtime import Runtime
from simsiam.distributed.watchdog import Watchdog
from simsiam.errors import TrainingStopped, UserError
from simsiam.run.journal import Journal
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Job
from simsiam.settings.wall_time import wall_seconds
from simsiam.training.clock import Clock, due
from simsiam.training.finite import FiniteGuard
from simsiam.training.signals import Signals
from simsiam.training.state import TrainState
from simsiam.training.step import StepResult


class Due(NamedTuple):
    """What is to be done after a step, the same on every rank."""

    last: bool
    logs: bool
    saves: bool


class Keeper:
    """Goes with the loop of a run. Every rank has one; entered for the time of training.

    After each step the loop asks `stepped` what is due, and calls `save` where a save is.
    """

    def __init__(
        self,
        settings: Job,
        numbers: Numbers,
        runtime: Runtime,
        state: TrainState,
        checkpoints: Checkpoints,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._settings, self._numbers, self._runtime, self._state = settings, numbers, runtime, state
        self._checkpoints, self._journal, self._clock = checkpoints, journal, clock
        self._agreement, self._signals = Agreement(runtime), Signals()
        self._guard = FiniteGuard(runtime.device)
        self._watchdog = Watchdog(runtime, journal.folder.path, settings.hang_timeout, lambda: self._signals.received)
        self._limit = wall_seconds(settings.max_wall_time)
        self._saved_at = self._stepped_at = time.monotonic()
        self._slowest_step = self._slowest_break = 0.0
        self._saved_step = -1
        self._ends_because = ""

    def __enter__(self) -> "Keeper":
        self._signals.__enter__()
        self._watchdog.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signals.__exit__(kind, error, trace)
        try:
            if kind is None:
                self._agreement.close()
                with self._watchdog.paused("the last save"):
                    self._finish_saving()
        finally:
            self._watchdog.close()

    def stepped(self, result: StepResult) -> Due:
        """Notes a step; returns what is due after it. Every rank must call it.

        Raises TrainingStopped where the loss or a gradient was not finite, before anything of it is logged or saved.
        """
        state, settings = self._state, self._settings
        step, now = state.step, time.monotonic()
        last = step == self._numbers.stop_step
        self._slowest_step = max(self._slowest_step, now - self._stepped_at)
        self._stepped_at = now
        self._watchdog.beat(step)
        self._guard.watch(step, result.finite, result.own_loss, result.own_gradients)

        heard = self._agreement.exchange(self._wishes(now))
        if self._saved_step == step - 1:
            # Of several ranks what is heard was told a step ago, and of the save before the one begun since.
            heard -= {Wish.SAVE, Wish.SETTLE}
        if Wish.SETTLE in heard:
            self._settle()
        if Wish.STOP in heard:
            name = self._signals.received.name if self._signals.received else "a signal to another rank"
            self._ends_because = f"it was asked to end ({name})"
        elif Wish.TIME in heard:
            self._ends_because = f"--max-wall-time {settings.max_wall_time} is near"

        every, spe = settings.checkpoint, state.steps_per_epoch
        saves = last or bool(self._ends_because) or Wish.SAVE in heard
        saves = saves or due(step, every.every_steps) or due(step, every.every_epochs * spe)
        saves = saves or due(step, every.keep_every_epochs * spe)
        logs = last or due(step, settings.log_every)
        if logs or saves:
            self._stop_unless_finite()
        return Due(last, logs, saves)

    def save(self) -> None:
        """Begins a save; where the run was asked to end before its last step, waits for it and ends.

        Raises Preempted then. Every rank must call it.
        """
        with self.apart("saving"):
            self._settle()
            self._journal.folder.check_ours(self._runtime)
            path = self._checkpoints.save(self._state)
            self._saved_at, self._saved_step = time.monotonic(), self._state.step
            if self._ends_because and self._state.step < self._numbers.stop_step:
                self._checkpoints.wait()
                self._agreement.close()
                self._journal.end_early(f"{self._ends_because} and has, at step {self._state.step}, saved in {path}")

    def stop(self, reason: str) -> NoReturn:
        """Saves and ends the run as failed, for `reason`."""
        with self.apart("saving"):
            self._settle()
            path = self._checkpoints.save(self._state)
            self._checkpoints.wait()
        self._journal.stop(f"{reason}; checkpoint {path}")

    @contextmanager
    def evaluating(self, what: str) -> Iterator[None]:
        """Around an evaluation, which is `apart`. Every rank must enter it.

        Raises TrainingStopped where there is nothing to evaluate, since a loss or a gradient was not finite.
        """
        self._stop_unless_finite()
        with self.apart(what):
            yield

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Around what is no training and may take its time: neither the clock nor the watchdog counts it."""
        began = time.monotonic()
        with self._watchdog.paused(what):
            yield
        self._stepped_at = time.monotonic()
        self._slowest_break = max(self._slowest_break, self._stepped_at - began)
        self._clock.restart()

    def _wishes(self, now: float) -> set[Wish]:
        wishes = {Wish.STOP} if self._signals.received else set()
        if self._checkpoints.is_done():
            wishes.add(Wish.SETTLE)
        if not self._runtime.is_main:
            return wishes
        minutes = self._settings.checkpoint.every_minutes
        if minutes and now - self._saved_at >= 60 * minutes:
            wishes.add(Wish.SAVE)
        # What may come before the end: a break such as an evaluation, two more steps, and the save itself.
        ahead = self._slowest_break + 3 * self._slowest_step + 2 * self._checkpoints.seconds + 10
        if self._limit and now - self._runtime.began + ahead >= self._limit:
            wishes.add(Wish.TIME)
        return wishes

    def _settle(self) -> None:
        """What became of the last save; a disk that refused is told, and training goes on."""
        try:
            self._checkpoints.wait()
        except TrainingStopped as apart:
            self._journal.stop(f"{apart}; the newest checkpoint is {self._checkpoints.newest()}")
        except UserError as refused:
            self._journal.say(f"warning: {refused}; training goes on without it")

    def _finish_saving(self) -> None:
        """Closes the checkpoints; tries once more where the last save was refused, for the disk may have room again."""
        try:
            self._checkpoints.wait()
        except UserError as refused:
            self._journal.say(f"warning: {refused}; trying once more")
            self._checkpoints.save(self._state)
        self._checkpoints.close()

    def _stop_unless_finite(self) -> None:
        bad = self._guard.first_bad()
        if bad is None:
            return
        with self.apart("saving"):
            self._settle()  # a save from before is good, and may be under way
        ranks = f"rank{'s' if len(bad.ranks) > 1 else ''} {', '.join(map(str, bad.ranks))}"
        where = f" on {ranks}" if bad.ranks and self._runtime.world_size > 1 else ""
        newest = self._checkpoints.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        self._journal.stop(
            f"loss or gradient was not finite at step {bad.step}{where}; no update was made from it and {kept}; "
            "lower optim.lr or try --precision fp32 (and say so by --allow-change optim.lr,precision)"
        )
