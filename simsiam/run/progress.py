"""One line on a terminal, plain lines in a pipe; rank 0 only."""

import os
import sys
from contextlib import suppress
from datetime import timedelta

from tqdm import tqdm


class Progress:
    """Shows where a run is.

    Args:
        total, done: steps of the run, and those already behind it.
        shown: False on other ranks, which say nothing.
        hidden: neither a bar nor lines of progress; what is said by `say` stays.
    """

    def __init__(self, total: int, done: int, *, shown: bool, hidden: bool) -> None:
        self._total, self._shown = total, shown
        terminal = shown and not hidden and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=" step", dynamic_ncols=True) if terminal else None
        self._lines = shown and not hidden and not terminal

    def stepped(self) -> None:
        """Moves on by one step."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, text: str, seconds_left: float) -> None:
        """Shows the newest measures."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif self._lines:
            _print(f"step {step}/{self._total}  {text}  eta {timedelta(seconds=round(seconds_left))}")

    def say(self, text: str) -> None:
        """A line of its own, which `--hide_progress` does not silence."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            _print(text)

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()


def _print(text: str) -> None:
    """A line to whoever reads; a reader that has gone, such as `head` or a terminal, is no reason to lose a run."""
    try:
        print(text, flush=True)
    except OSError:
        with suppress(OSError, ValueError):
            # What is still in the buffer would fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
