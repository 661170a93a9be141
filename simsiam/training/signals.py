"""Signals that ask a run to save and end."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_AT_ONCE = 2.0  # seconds; Slurm and torchrun may both hand the same wish to a rank
_CLOSE = b"\0"


class Signals:
    """While it is entered, notes the first of `ASKING`; another one more than two seconds later ends the process.

    A thread notes them. Python's own handlers wait until the main thread is back from a collective, which may be never,
    and a save from inside one would meet the step at any point, and other ranks at another.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}
        self._pipe = (-1, -1)

    def __enter__(self) -> "Signals":
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._fd_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        for number in ASKING:
            # What `nohup` has a process ignore stays ignored.
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                self._before[number] = signal.signal(number, _left_to_the_thread)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.write(self._pipe[1], _CLOSE)
        self._thread.join()
        for descriptor in self._pipe:
            os.close(descriptor)

    def _listen(self) -> None:
        while (byte := os.read(self._pipe[0], 1)) != _CLOSE:
            if byte[0] not in ASKING:
                continue
            now = time.monotonic()
            if self.received is None:
                self.received, self._since = signal.Signals(byte[0]), now
            elif now - self._since > _AT_ONCE:
                os._exit(128 + byte[0])


def _left_to_the_thread(number: int, frame: FrameType | None) -> None:
    """A handler of Python must be there for the number to be written to the pipe at all."""


def _deaf() -> None:
    """A loader's process shares the pipe, and what it is told is not for the run."""
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deaf)
