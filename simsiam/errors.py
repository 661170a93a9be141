"""How a run ends when it does not end well: one sentence and an exit code, never a traceback a rank."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps

_RANK_0_IS_GONE = 3.0  # seconds after a mistake that it has met as well, and torchrun has ended the others for it


class UserError(Exception):
    """A user's mistake: one sentence that names the thing, the place and the remedy. Exit code 2."""

    exit_code = 2


class ToldByMain(UserError):
    """A mistake that rank 0 has met for all, and tells."""


class TrainingStopped(Exception):
    """A run that stopped itself, with the reason and the last good checkpoint. Exit code 3."""

    exit_code = 3


class PeersLost(Exception):
    """A collective failed because ranks are gone: told by each that is left, as rank 0 may be gone. Exit code 1."""

    exit_code = 1


class OutOfMemory(Exception):
    """A rank had no memory for what its settings ask for: told by that rank. Exit code 2."""

    exit_code = 2


class Preempted(Exception):
    """A run that was asked to save and end, and has. Exit code 0: torchrun takes anything else for a failure."""

    exit_code = 0


def _tell(error: UserError | TrainingStopped) -> None:
    """Rank 0 says it for all; a mistake that only another rank has met, such as a GPU it lacks, that one says."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif "TORCHELASTIC_RUN_ID" in os.environ and not isinstance(error, ToldByMain | TrainingStopped):
        time.sleep(_RANK_0_IS_GONE)
        print(f"error: rank {rank}: {error}", file=sys.stderr, flush=True)


def ends_with_a_sentence(main: Callable[[], None]) -> Callable[[], None]:
    """Turns the errors above into a sentence, in most cases on rank 0, and their exit code on every rank."""

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except (UserError, TrainingStopped) as error:
            _tell(error)
            sys.exit(error.exit_code)
        except (PeersLost, OutOfMemory) as lost:
            print(f"error: {lost}", file=sys.stderr, flush=True)
            sys.exit(lost.exit_code)
        except KeyboardInterrupt:  # not while a run trains, where it is a wish to save and end
            if os.environ.get("RANK", "0") == "0":
                print("interrupted", file=sys.stderr, flush=True)
            sys.exit(128 + signal.SIGINT)
        except Preempted as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(stopped, flush=True)
            sys.exit(stopped.exit_code)

    return wrapped
