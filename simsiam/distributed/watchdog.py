"""Finds a run that hangs, tells which rank is missing, writes down where every thread stands, and ends the process."""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple, NoReturn

from torch.distributed import PrefixStore, Store

from simsiam.distributed.processes import pid_namespace, process_status
from simsiam.distributed.runtime import Runtime

EXIT_CODE = 4
_CLOSED = "closed"
_NONE = "-"  # what a key holds before it is written: the store waits for ever for one that does not exist
# Code that waits for other ranks: collectives, the backward pass that calls them, and over NCCL a step's outcome.
_WAITING = ("torch/distributed/", "simsiam/distributed/", "torch/autograd/graph.py", "training/finite.py")


class Beat(NamedTuple):
    """What a rank says of itself about once a second.

    Attributes:
        number: counts the beats.
        step: steps done.
        phase: "" while it trains, else what it does instead, such as "saving"; "closed" when it has left.
        idle, limit: seconds since the main thread got on, and how many of them are a hang.
        waits: whether the main thread is in a collective.
        place: the line of code where the main thread is.
        host, pid, born: the process, and when it began, so that no other is killed in its stead.
    """

    number: int
    step: int
    phase: str
    idle: float
    limit: float
    waits: bool
    place: str
    host: str
    pid: int
    born: str


class Verdict(NamedTuple):
    """That the run hangs: by which rank it was found, the sentence for the user, and the processes that stand still."""

    by: int
    sentence: str
    stopped: tuple[tuple[str, int, str], ...] = ()


class Watchdog:
    """Watches over the main thread from `start` to `close`; with ranks they watch each other through the store.

    A rank hangs when, after the first step, its main thread does not get on for `timeout` seconds and for five of its
    slowest steps, or when its beats stop for `timeout` seconds (a stopped process, or one that never lets its threads
    run). Rank 0 judges; where it is gone, the next one. Every rank whose threads run then writes the stacks of all of
    them into the folder and ends with code 4, for torchrun to start all again; a rank that stands still is killed by
    one on its host.

    Args:
        folder: of the run; the stacks come to `stacks/rank_00003.txt` in it.
        timeout: seconds; 0 watches nothing.
        stopping: whether this rank was asked to end. It is asked from a thread; while it is true, a peer without beats
            for five seconds is enough.
    """

    def __init__(
        self, runtime: Runtime, folder: Path, timeout: float, stopping: Callable[[], object] = lambda: False
    ) -> None:
        self._runtime, self._timeout, self._stopping = runtime, timeout, stopping
        self._path = folder / "stacks" / f"rank_{runtime.rank:05d}.txt"
        self._interval = min(1.0, timeout / 10)
        self._step, self._phase, self._stepped = 0, "starting", False
        self._moved = self._floor = self._looked = time.monotonic()
        self._slowest = 0.0
        # Seconds of the first step, all that is known of the second: it takes longer, but a large step takes minutes.
        self._first = 0.0
        self._heard = time.monotonic()
        self._closing, self._ending = threading.Event(), threading.Lock()
        self._main, self._pid = threading.main_thread().ident, os.getpid()
        self._threads: list[threading.Thread] = []
        self._peers: _Peers | None = None
        self._zero: Beat | None = None
        self._file: IO | None = None

    def start(self) -> None:
        """Begins to watch. What comes before the first step may take any time."""
        if not self._timeout:
            return
        self._file = self._open()
        self._heard = self._moved = self._looked = time.monotonic()
        if self._runtime.store is None:
            self._stop_before = signal.signal(signal.SIGTSTP, self._stand_aside)
        else:
            # The first beat is not left to a thread: of a rank that stops at once the others must know the process.
            self._peers = _Peers(self._runtime, self._timeout, self._interval)
            self._peers.tell(self._beat(0))
        # One thread never talks to the store, so that it can tell when the other waits for it in vain.
        work = [self._watch] if self._runtime.store is None else [self._watch, self._talk]
        self._threads = [threading.Thread(target=each, name="watchdog", daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def beat(self, step: int) -> None:
        """Says that `step` steps are done."""
        now = time.monotonic()
        took = now - max(self._moved, self._floor)
        if self._stepped:
            self._slowest, self._first = max(self._slowest, took), 0.0
        else:
            self._first = took
            self._phase = "" if self._phase == "starting" else self._phase
        self._step, self._stepped, self._moved = step, True, now

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Around what has no steps and may take any time; a rank whose beats stop is found all the same."""
        before, self._phase = self._phase, what
        try:
            yield
        finally:
            self._phase, self._moved = before, time.monotonic()

    def close(self) -> None:
        """Ends the watch, and tells the others that this rank leaves."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=5)
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            if self._runtime.store is None:
                signal.signal(signal.SIGTSTP, self._stop_before)
            with suppress(OSError):
                if self._file is not sys.__stderr__ and os.fstat(self._file.fileno()).st_size == 0:
                    self._path.unlink()
                    self._path.parent.rmdir()  # when it is empty
            self._file = None

    def _stand_aside(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z, or Slurm that suspends the job: the alarm of `_watch` would go off as soon as the process goes on."""
        if os.getpid() == self._pid:  # and no loader's process, which has none
            faulthandler.cancel_dump_traceback_later()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _watch(self) -> None:
        while not self._closing.wait(self._interval):
            # Writes the stacks from a thread that needs no GIL, should this one not run again in time.
            faulthandler.dump_traceback_later(self._timeout, exit=self._runtime.store is None, file=self._file)
            now = time.monotonic()
            if now - self._looked > _gap(self._interval):
                self._heard = min(now, self._heard + now - self._looked)
            self._forgive_gap(now)
            self._looked = now
            if self._runtime.store is None:
                rank = self._runtime.rank
                verdict = judge({rank: self._beat(0)}, {rank: 0.0}, self._timeout)
                if verdict:
                    self._end(verdict._replace(by=rank))
            elif now - self._heard > _patience(self._timeout, bool(self._stopping())):
                # Where no torchrun does it, rank 0 holds the store itself.
                zero = f", perhaps {_named({0: self._zero})}" if self._zero and self._runtime.rank else ""
                gone = f"rank {self._runtime.rank} has not reached the store of the job for {now - self._heard:.0f} s"
                stopped = _that_is_stopped(self._zero)
                by = self._runtime.rank if self._runtime.local_rank == (1 if stopped else 0) else -1  # one on each host
                told = f"{gone}; the node or the process that held it is gone or stands still{zero}"
                self._end(Verdict(by, told, stopped))

    def _forgive_gap(self, now: float) -> None:
        """Where `_watch` could not run either, the process was stopped, or its machine: that is no idleness."""
        if now - self._looked > _gap(self._interval):
            self._floor = now - max(0.0, self._looked - max(self._moved, self._floor))

    def _beat(self, number: int) -> Beat:
        self._forgive_gap(time.monotonic())
        idle = time.monotonic() - max(self._moved, self._floor)
        waits, place = _where(self._main)
        return Beat(number, self._step, self._phase, idle, self._limit(), waits, place, _host(), os.getpid(), born())

    def _limit(self) -> float:
        return max(self._timeout, 5 * max(self._slowest, self._first))

    def _end(self, verdict: Verdict) -> NoReturn:
        """Stacks, sentence, the end. The ranks wait for each other: torchrun ends all as soon as one has."""
        self._ending.acquire()  # for ever: the other thread has nothing to add
        faulthandler.dump_traceback_later(10 + 3 * self._interval, exit=True)  # should a full pipe stop us here
        with suppress(OSError, ValueError):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {verdict.sentence}\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
        if verdict.by == self._runtime.rank:
            told = f"error: the run hangs: {verdict.sentence}; the stacks are in {self._path.parent}\n"
            with suppress(OSError):
                os.write(2, told.encode())
        time.sleep(2 * self._interval)
        for host, pid, began in verdict.stopped:
            if host == _host() and pid != os.getpid() and began and began == born(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        os._exit(EXIT_CODE)

    def _open(self) -> IO:
        # Opened now: in the end the disk may be what hangs. Appended to, for what an earlier attempt wrote is wanted.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._path.open("a")
        except OSError:
            return sys.__stderr__

    def _talk(self) -> None:
        for number in count(1):  # quick at first: who stands still within a second must have been heard of
            last = self._closing.wait(min(self._interval, number / 20) if self._peers else self._timeout / 5)
            try:
                peers = self._peers = self._peers or _Peers(self._runtime, self._timeout, self._interval)
                mine = self._beat(number)
                peers.tell(mine._replace(phase=_CLOSED) if last else mine)
                verdict = None if last else peers.look(bool(self._stopping()))
                self._heard, self._zero = time.monotonic(), peers.zero or self._zero
            except (RuntimeError, OSError):
                verdict = self._peers = None  # `_watch` ends the process when this lasts
            if verdict:
                self._end(verdict)
            if last:
                return


class _Peers:
    """The ranks' beats and the verdict, in the store."""

    def __init__(self, runtime: Runtime, timeout: float, interval: float) -> None:
        self._rank, self._timeout, self._interval = runtime.rank, timeout, interval
        # A connection of its own: the main thread may sit in a wait on the other.
        self._store: Store = PrefixStore("watchdog", runtime.store.clone())
        self._store.set_timeout(timedelta(seconds=max(timeout, 1)))
        self._keys = [f"beat/{rank}" for rank in range(runtime.world_size)]
        self._changed: dict[int, tuple[int, float]] = {}
        self._looked = time.monotonic()
        self.zero: Beat | None = None
        self._knows_all = False
        for key in ("verdict", self._keys[0]):
            self._store.compare_set(key, "", _NONE)

    def tell(self, beat: Beat) -> None:
        self._store.set(self._keys[self._rank], json.dumps(beat))

    def look(self, stopping: bool) -> Verdict | None:
        """The verdict of this rank or of another, in one round trip, of two keys for a rank that does not judge."""
        judges = self._rank == 0 or stopping or self._stands_in()
        beats = self._read(range(len(self._keys)) if judges else [0])
        if isinstance(beats, Verdict):
            return beats
        if not judges:
            return None
        now = time.monotonic()
        silent = {rank: now - self._changed[rank][1] for rank in beats}
        verdict = judge(beats, silent, _patience(self._timeout, stopping))
        if verdict is None:
            return None
        told = json.dumps(verdict._replace(by=self._rank))
        return _verdict(self._store.compare_set("verdict", _NONE, told))  # the first one holds

    def _read(self, ranks: range | list[int]) -> dict[int, Beat] | Verdict:
        if len(ranks) > 1 and not self._knows_all:
            for key in self._keys:
                self._store.compare_set(key, "", _NONE)
            self._knows_all = True
        verdict, *told = self._store.multi_get(["verdict", *(self._keys[rank] for rank in ranks)])
        now = time.monotonic()
        if now - self._looked > _gap(self._interval):
            # Nothing was heard of anyone: the store was slow, or this process was stopped. Silence begins anew.
            self._changed = {rank: (number, now) for rank, (number, _) in self._changed.items()}
        self._looked = now
        if verdict != _NONE.encode():
            return _verdict(verdict)
        beats = {rank: Beat(*json.loads(text)) for rank, text in zip(ranks, told) if text != _NONE.encode()}
        for rank, beat in beats.items():
            if rank not in self._changed or self._changed[rank][0] != beat.number:
                self._changed[rank] = beat.number, now
        self.zero = beats.get(0)
        return beats

    def _stands_in(self) -> bool:
        """Whether this rank judges for rank 0: it has left or is silent, and no rank between has done it by now."""
        if self.zero is None:
            return False
        silent = time.monotonic() - self._changed[0][1]
        return silent > self._timeout / 2 + 2 * self._interval * (self._rank - 1)


def judge(beats: Mapping[int, Beat], silent: Mapping[int, float], timeout: float) -> Verdict | None:
    """Whether the run hangs, by the newest beat of each rank and the seconds since it came.

    Missing are the ranks without beats. Where there are none: those that have left or are behind in steps; else those
    that wait for nobody while others do; else those that stand at another line than most.
    """
    there = {rank: beat for rank, beat in beats.items() if beat.phase != _CLOSED}
    if any(silent[rank] > timeout for rank in there):
        stopped = {rank: beat for rank, beat in there.items() if silent[rank] > timeout / 2}
        processes = tuple((beat.host, beat.pid, beat.born) for beat in stopped.values())
        seconds = max(silent[rank] for rank in stopped)
        return Verdict(0, f"nothing is heard for {seconds:.0f} s of {_named(stopped)}", processes)
    if any(silent[rank] > timeout / 2 for rank in there):
        return None  # what is known of that rank is old, and soon it speaks or is missing
    paused = [beat.step for beat in there.values() if beat.phase]
    # Who is past a rank that saves or evaluates may be waiting for it.
    stuck = [beat for beat in there.values() if not beat.phase and beat.idle > beat.limit]
    stuck = [beat for beat in stuck if all(step > beat.step for step in paused)]
    if not stuck:
        return None
    missing = _missing(beats)
    who = f"missing: {_named(missing)}" if missing else f"no rank stands out: {_named(there)}"
    return Verdict(0, f"no step for {max(beat.idle for beat in stuck):.0f} s, {who}")


def _missing(beats: Mapping[int, Beat]) -> dict[int, Beat]:
    newest = max(beat.step for beat in beats.values())
    places = Counter(beat.place for beat in beats.values())
    usual, times = places.most_common(1)[0]
    signs: list[Callable[[Beat], bool]] = [
        lambda beat: beat.phase == _CLOSED,
        lambda beat: beat.step < newest,
        lambda beat: not beat.waits,
        lambda beat: 2 * times > len(beats) and beat.place != usual,
    ]
    for sign in signs:
        found = {rank: beat for rank, beat in beats.items() if sign(beat)}
        if 0 < len(found) < len(beats):
            return found
    return dict(beats) if len(beats) == 1 else {}


def _named(beats: Mapping[int, Beat]) -> str:
    shown = [
        f"rank {rank} ({beat.phase or 'training'} after step {beat.step}, at {beat.place}, "
        f"pid {beat.pid} on {beat.host.partition(' ')[0]})"
        for rank, beat in beats.items()
    ]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _verdict(told: bytes) -> Verdict:
    by, sentence, stopped = json.loads(told)
    return Verdict(by, sentence, tuple(tuple(process) for process in stopped))


def _that_is_stopped(beat: Beat | None) -> tuple[tuple[str, int, str], ...]:
    """The process of a beat, where it is on this host and stopped: it could neither end by itself nor by a signal."""
    status = process_status(beat.pid) if beat is not None and beat.host == _host() else None
    is_stopped = status is not None and status[0] == "T" and str(status[1]) == beat.born
    return ((beat.host, beat.pid, beat.born),) if is_stopped else ()


def _patience(timeout: float, stopping: bool) -> float:
    return min(timeout, 5.0) if stopping else timeout


def _gap(interval: float) -> float:
    """Seconds between two looks that say more of the looker than of what it looks at."""
    return 3 * interval + 0.5


def _where(thread: int | None) -> tuple[bool, str]:
    """Whether a thread is in a collective, and the line where it is."""
    frame = sys._current_frames().get(thread)
    while frame is not None and "simsiam/distributed/host_memory.py" in frame.f_code.co_filename:
        frame = frame.f_back  # a rank that waits there goes round in a few lines
    if frame is None:
        return False, "its end"
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _WAITING):
            return True, place
        frame = frame.f_back
    return False, place


def _host() -> str:
    """The host, and on Linux which numbering of processes on it."""
    return f"{socket.gethostname()} {pid_namespace()}"


def born(pid: int | str = "self") -> str:
    """When a process began, in ticks since its host did; "" where that is not known or there is none."""
    status = process_status(pid)
    return str(status[1]) if status else ""
