"""One job at a time in a run folder: `run.lock`, with a beat that tells a job that lives from one that is gone."""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

from simsiam.distributed.processes import pid_namespace, process_status
from simsiam.errors import TrainingStopped, UserError

_MOST_BYTES = 4096
_TOKEN = re.compile("[0-9a-f]{32}")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither a link out of the folder nor a pipe that waits for ever
# Of the same bytes written over themselves this flushes no journal, which a checkpoint on its way could hold up.
_flush = getattr(os, "fdatasync", os.fsync)


class RunLock:
    """`run.lock` of a run folder: made by `acquire`, removed by `release`, or both by `with`. For rank 0 alone.

    The file says who holds it and has a counter, the beat. A thread writes it through one descriptor, so that a job
    that was thought dead and wakes up writes into a file without a name, not over the lock of its heir.

    Both making and taking over create a file that must not exist, which of two jobs on any two hosts one can do. The
    heir of a lock is who creates `run.lock.TOKEN`, its claim on the lock with that token, and finds the lock still
    there; it then renames the claim to `run.lock`. An heir that dies before that has a claim to be inherited in turn.

    Args:
        folder: the run folder, which exists.
        beat_seconds: from beat to beat.
        watch_seconds: how long the beat of a job on another host must stand still before its lock is taken over.
    """

    def __init__(self, folder: Path, *, beat_seconds: float = 2.0, watch_seconds: float = 12.0) -> None:
        self.path = folder / "run.lock"
        self._beat_seconds, self._watch_seconds = beat_seconds, watch_seconds
        self._token, self._descriptor = "", -1
        self._job: dict[str, Any] = {}
        self._ends = threading.Event()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the folder. Raises UserError where another job has it, or where no lock can be made in it."""
        self._job = {**_place(), "pid": os.getpid(), "started": (process_status("self") or ("", 0))[1]}
        try:
            while not self._took():
                time.sleep(0.01)
            for left in self.path.parent.glob(f"{self.path.name}.{'[0-9a-f]' * 32}"):
                if left != self._claim_on(self._token):
                    left.unlink(missing_ok=True)  # of jobs that came too late or died on the way here
        except OSError as error:
            self._drop()
            raise UserError(
                f"{self.path} cannot be made or read ({error.strerror}); give an --out that you may write to"
            ) from None
        self._ends.clear()
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the folder back: stops the beat and removes the lock, where it is still this job's."""
        if not self._token:
            return
        self._ends.set()
        self._thread.join()
        with suppress(OSError):  # a folder that is gone or read-only by now; the process ends, and so does its lock
            if self.is_ours():
                self.path.unlink()
        self._drop()

    def check(self) -> None:
        """Raises TrainingStopped where another job has taken over, because this one stood still for too long."""
        with suppress(OSError):  # a folder that is away for now is nobody else's
            holder = self._holder()
            if holder is not None and holder.job and holder.token != self._token:
                raise TrainingStopped(
                    f"{self.path.parent} was taken over by {_named(holder.job)} while this job stood still"
                )

    def _took(self) -> bool:
        """One try; False where the lock changed hands meanwhile. Raises UserError where a job has it."""
        holder = self._holder()
        if holder is None:
            return self._won(self.path)
        why = self._why_dead(holder)
        claim = self._claim_on(holder.token)
        if not why or not self._won(claim):
            return False
        os.replace(claim, self.path)
        print(f"{self.path} of {_named(holder.job)} is taken over: {why}", file=sys.stderr, flush=True)
        return True

    def _why_dead(self, holder: "_Lock") -> str:
        """Why a lock may be taken over; empty where it is another one by now. Raises UserError where its job lives."""
        job = holder.job
        here = job and job["boot"] and all(job[key] == self._job[key] for key in ("host", "boot", "pid_namespace"))
        if here and job["file"] == holder.file:  # else it came with a folder that was copied
            lives = _is_running(job["pid"], job["started"])
            if lives is not None:
                if lives:
                    raise self._in_use(holder)
                return "its process is gone"
        # Clocks of hosts differ, and so do times of files: all that counts is what moves while we look.
        until = time.monotonic() + self._watch_seconds
        while time.monotonic() < until:
            time.sleep(min(0.25, self._beat_seconds / 4))
            seen = self._holder()
            if seen is None or seen.file != holder.file:
                return ""
            if seen.text != holder.text:
                raise self._in_use(seen)
        return f"its beat has stood still for {self._watch_seconds:g} s"

    def _in_use(self, holder: "_Lock") -> UserError:
        return UserError(
            f"{self.path.parent} is in use by {_named(holder.job)}; wait for its end, stop it, or give another --out"
        )

    def _holder(self) -> "_Lock | None":
        """Who has the folder: `run.lock`, or the newest claim on it."""
        holder = _read(self.path)
        while holder is not None and (heir := _read(self._claim_on(holder.token))) is not None:
            holder = heir
        return holder

    def is_ours(self) -> bool:
        """Whether this job has the folder, so that what it writes there overwrites nobody."""
        holder = self._holder()
        return holder is not None and holder.token == self._token

    def _claim_on(self, token: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{token}")

    def _won(self, path: Path) -> bool:
        """Creates a lock or claim of this job; whether the folder then is this job's."""
        try:
            self._descriptor = os.open(path, _NEW, 0o644)
        except FileExistsError:
            return False
        self._token = secrets.token_hex(16)
        self._job["file"] = os.fstat(self._descriptor).st_ino
        self._job["since"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        try:
            self._write(0)
            if self.is_ours():
                return True
        except OSError:
            path.unlink(missing_ok=True)
            raise
        # The claim is on a lock that an earlier heir has replaced; or we slept, and our lock looked empty and dead.
        if path != self.path:
            path.unlink(missing_ok=True)
        self._drop()
        return False

    def _write(self, beat: int) -> None:
        # All of it each time, in one call and of one length: a reader sees one beat or the next.
        text = json.dumps({**self._job, "token": self._token})[:-1] + f', "beat": {beat:>12}}}\n'
        os.pwrite(self._descriptor, text.encode(), 0)
        _flush(self._descriptor)

    def _beat(self) -> None:
        for beat in count(1):
            if self._ends.wait(self._beat_seconds):
                return
            with suppress(OSError):  # a disk that is full or away: the next beat may get through
                self._write(beat)

    def _drop(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._token, self._descriptor = "", -1


class _Lock(NamedTuple):
    """A lock or claim as it was read: its file's number, its text, its token, and its job where the text says it."""

    file: int
    text: bytes
    token: str
    job: dict[str, Any] | None


def _read(path: Path) -> _Lock | None:
    try:
        descriptor = os.open(path, _OLD)
        try:
            file, text = os.fstat(descriptor).st_ino, os.read(descriptor, _MOST_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # the second: removed on another host while we looked
            return None
        raise
    job = _parsed(text)
    # What cannot be read is known by what it is; with the file's number, as a claim on nothing may be empty too.
    return _Lock(file, text, job["token"] if job else hashlib.sha256(b"%d %s" % (file, text)).hexdigest()[:32], job)


_TEXTS, _NUMBERS = ("host", "boot", "pid_namespace", "since", "token"), ("pid", "started", "file")


def _parsed(text: bytes) -> dict[str, Any] | None:
    """What a lock says; None for a damaged one."""
    try:
        job = json.loads(text)
        texts = all(isinstance(job[key], str) and job[key].isprintable() for key in _TEXTS)
        numbers = all(isinstance(job[key], int) for key in _NUMBERS)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    # The token becomes part of a file's name.
    return job if texts and numbers and job["pid"] > 0 and _TOKEN.fullmatch(job["token"]) else None


def _named(job: dict[str, Any] | None) -> str:
    return f"process {job['pid']} on {job['host']} since {job['since']}" if job else "a job that its lock does not name"


def _place() -> dict[str, str]:
    """Where the process numbers of this process mean something: two containers of one host count each from 1."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "pid_namespace": pid_namespace()}


def _is_running(pid: int, started: int) -> bool | None:
    """Whether the process that began at that time lives, a zombie not; None where /proc hides what exists."""
    process = process_status(pid)
    if process is not None:
        return process[0] not in "ZX" and process[1] == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return None
