"""Signals that ask a run to save and end."""

import os
import signal
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """While it is entered, notes the first of `ASKING`; a second one ends the process at once.

    The handler does nothing else: a save from inside it would meet the step at any point, and other ranks at another.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._owner = os.getpid()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        for number in ASKING:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a loader's process: it ends when its loader does, and what it holds is still wanted
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
