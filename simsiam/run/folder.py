"""The run folder: what was asked, what happened, and whether it is still happening."""

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from simsiam.atomic import write_atomically
from simsiam.distributed.runtime import Runtime
from simsiam.errors import Preempted, UserError
from simsiam.run.changes import check_unchanged
from simsiam.run.lock import RunLock
from simsiam.settings.tree import Job

STATES = ("in-progress", "completed", "failed", "preempted")


class RunFolder:
    """`--out`, one run each. Rank 0 writes; `ls` shows the state as an empty file of its name."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / "encoder.safetensors"
        self.bad_files = self.path / "bad_files.txt"
        self._begun = False
        self._lock = RunLock(self.path)

    @contextmanager
    def opened(self, settings: Job, runtime: Runtime) -> Iterator["RunFolder"]:
        """The folder made and locked; a run that has begun and ends by an exception is marked `failed`, or `preempted`.

        Raises UserError where it cannot be written, where another job is in it, where `--resume never` finds a run in
        it, and where the run that would go on began with other settings.
        """
        runtime.on_main(lambda: self._open(settings))
        try:
            yield self
        except Preempted:
            with suppress(OSError):  # what was asked to end may be a run within this one, such as a sweep's
                if runtime.is_main and self._lock.is_ours():
                    self.mark("preempted")
            raise
        except BaseException as error:
            with suppress(OSError):  # the folder may be what failed
                if self._begun and self._lock.is_ours():
                    # Ctrl-C before the first step and after the last one; between them it is heard in order.
                    asked = isinstance(error, KeyboardInterrupt)
                    self.mark("preempted" if asked else "failed", str(getattr(error, "exit_code", "")))
            raise
        finally:
            if runtime.is_main:
                self._lock.release()

    def begin(self, settings: Job) -> None:
        """Writes config.yaml and marks the run in progress; rank 0, when nothing is left that a mistake could stop."""
        self._begun = True
        # An encoder file of an earlier end would be taken for this run's; its weights are in the checkpoint too.
        self.encoder.unlink(missing_ok=True)
        self.mark("in-progress")
        # What was admitted once is by now how the run is; config.yaml given as recipe admits nothing.
        text = yaml.safe_dump(_plain(asdict(replace(settings, allow_change=[]))), sort_keys=False)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        write_atomically(self.path / "config.yaml", f"# {command}\n# python {platform.python_version()}\n{text}")

    def _open(self, settings: Job) -> None:
        make_writable(self.path)
        self._lock.acquire()
        try:
            self._check(settings)
        except BaseException:
            self._lock.release()
            raise

    def _check(self, settings: Job) -> None:
        if settings.resume == "never" and not settings.debug and any(self.checkpoints.glob("step_*")):
            raise UserError(
                f"{self.path} already holds a run and --resume is never; give another --out or remove the folder"
            )
        holds_one = any(self.checkpoints.glob("step_*")) or settings.checkpoint.folder
        if self.goes_on(settings.resume) and holds_one:
            # A sweep chooses its rates, and notes what it has chosen.
            swept = ("optim.lr", "optim.head_lr") if getattr(settings, "sweep", "") else ()
            check_unchanged(self.path / "config.yaml", settings, (*settings.allow_change, *swept))

    def goes_on(self, resume: str) -> bool:
        """Whether `--resume` means the run of this folder, if there is one: by `auto`, or by a path in it."""
        return resume == "auto" or (resume != "never" and self.path.resolve() in (Path(resume) / "_").resolve().parents)

    def check_ours(self, runtime: Runtime) -> None:
        """Ends the run on every rank where another job has taken the folder over. Every rank must call it."""
        runtime.on_main(self._lock.check)

    def mark(self, state: str, code: str = "") -> None:
        """Shows that the run is in one of `STATES`, and the exit code of one that failed, where it has one.

        What starts jobs again looks for `preempted`, and not to start one that failed with 2 or 3.
        """
        for other in STATES:
            (self.path / other).unlink(missing_ok=True)
        (self.path / state).write_text(code)

    def has_ended(self, step: int, stop_step: int, runtime: Runtime) -> bool:
        """Whether the run here is complete and `step` leaves nothing to do; says so. Every rank must call it."""
        # Rank 0 looks for all: ranks that saw different folders would part ways for ever.
        if step < stop_step or not runtime.on_main((self.path / "completed").exists):
            return False
        if runtime.is_main:
            print(f"{self.path} is complete at step {step}; its figures are in summary.json")
        return True

    def count_bad_files(self) -> int:
        """Images that could not be read, each once, over all ranks and resumes."""
        return len(set(self.bad_files.read_text().splitlines())) if self.bad_files.exists() else 0

    def read_summary(self) -> dict[str, Any]:
        """The figures so far of a run that goes on; how it ended is not one of them."""
        path = self.path / "summary.json"
        figures = json.loads(path.read_text()) if path.exists() else {}
        return {key: value for key, value in figures.items() if key not in ("state", "reason")}

    def completed_summary(self) -> dict[str, Any] | None:
        """The figures of a run that has ended well; None where there is none."""
        return self.read_summary() if (self.path / "completed").exists() else None

    def remove_checkpoints(self) -> None:
        """Frees the disk of a run whose figures are all that is wanted."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, in one move."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def make_writable(path: Path, option: str = "--out") -> None:
    """Makes the folder that an option names and tries it. Raises UserError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written ({error.strerror}); give a folder you may write to"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
