"""One job in a run folder: a second one is refused by name, a dead one's lock is taken over, by one heir alone."""

import json
import multiprocessing as mp
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from simsiam.errors import TrainingStopped, UserError
from simsiam.run.lock import RunLock

FORK = mp.get_context("fork")
QUICK = {"beat_seconds": 0.05, "watch_seconds": 0.4}
PATIENT = {"beat_seconds": 0.05, "watch_seconds": 30.0}  # where nothing is to be watched


@contextmanager
def holder(folder: Path) -> Iterator[Any]:
    """A process that holds the folder until it is killed."""

    def hold(ready: Any) -> None:
        RunLock(folder, **QUICK).acquire()
        ready.set()
        signal.pause()

    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(ready,))
    process.start()
    assert ready.wait(20)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def left_by_a_killed_job(folder: Path) -> dict[str, Any]:
    """What its lock says."""
    with holder(folder) as process:
        process.kill()
    return json.loads((folder / "run.lock").read_text())


def write(folder: Path, job: dict[str, Any]) -> None:
    (folder / "run.lock").write_text(json.dumps(job))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, locks of this process are those of another host."""
    return lambda: monkeypatch.setattr(socket, "gethostname", lambda: "node7")


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert "run.lock" not in [thread.name for thread in threading.enumerate()]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("run.lock.", ".run.lock"))] == []


def test_a_second_job_is_refused_with_host_process_and_time_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path) as process, pytest.raises(UserError) as refused:
        RunLock(tmp_path, **PATIENT).acquire()
    said = re.escape(f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 20")
    assert re.match(said + r"\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait", str(refused.value))


def test_a_lock_is_there_as_long_as_it_is_held_and_can_be_had_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, **PATIENT)
    for _ in range(2):
        with lock:
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
            lock.check()
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
                RunLock(tmp_path, **PATIENT).acquire()
        assert list(tmp_path.iterdir()) == []
    lock.release()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_job_is_taken_over_at_once(tmp_path: Path, reaped: bool, capfd) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        # Not reaped it stays a zombie, as it does for a moment under torchrun.
        os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        began = time.monotonic()
        with RunLock(tmp_path, **PATIENT) as lock:
            assert time.monotonic() - began < 5
            lock.check()
    assert capfd.readouterr().err.count(f"process {process.pid} on {socket.gethostname()}") == 1


def test_a_number_that_another_process_has_by_now_does_not_keep_a_lock(tmp_path: Path) -> None:
    job = left_by_a_killed_job(tmp_path)
    write(tmp_path, {**job, "pid": os.getpid(), "file": (tmp_path / "run.lock").stat().st_ino})
    with RunLock(tmp_path, **PATIENT):
        pass


def test_a_job_on_another_host_is_known_by_its_beat(tmp_path: Path, elsewhere, capfd) -> None:
    elsewhere_says = RunLock(tmp_path, **QUICK)
    with holder(tmp_path) as process:
        elsewhere()
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            elsewhere_says.acquire()
    began = time.monotonic()
    with elsewhere_says:
        assert time.monotonic() - began >= 0.4
    assert "its beat has stood still for 0.4 s" in capfd.readouterr().err


@pytest.mark.parametrize("key", ["host", "boot", "pid_namespace", "file"])
def test_process_numbers_mean_nothing_in_another_place(tmp_path: Path, key: str) -> None:
    job = left_by_a_killed_job(tmp_path)
    write(tmp_path, {**job, key: 1 if key == "file" else "other"})
    began = time.monotonic()
    with RunLock(tmp_path, **QUICK):
        assert time.monotonic() - began >= 0.4


def test_a_copy_of_a_folder_in_use_is_free(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    with holder(tmp_path):
        (copy / "run.lock").write_bytes((tmp_path / "run.lock").read_bytes())
        with RunLock(copy, **QUICK):
            pass


DAMAGED = {
    "empty": b"",
    "cut": b'{"host": "node1", "boot": "',
    "another kind": b"[1, 2]",
    "binary": bytes(range(256)),
    "deep": b"[" * 4000,
    "no token": b'{"host": "a", "boot": "", "pid_namespace": "", "since": "", "pid": 1, "started": 1, "file": 1}',
    "a token that climbs out": json.dumps(
        {
            "host": "a",
            "boot": "",
            "pid_namespace": "",
            "since": "",
            "token": "/../../x",
            "pid": 1,
            "started": 1,
            "file": 1,
        }
    ).encode(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_lock_is_watched_and_taken_over(tmp_path: Path, damage: str, capfd) -> None:
    (tmp_path / "run.lock").write_bytes(DAMAGED[damage])
    with RunLock(tmp_path, beat_seconds=0.05, watch_seconds=0.1) as lock:
        lock.check()
    assert "a job that its lock does not name" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_just_being_written_is_no_damaged_one(tmp_path: Path) -> None:
    job = left_by_a_killed_job(tmp_path)
    (tmp_path / "run.lock").write_bytes(b"")
    threading.Timer(0.3, write, (tmp_path, {**job, "pid": 4321})).start()
    with pytest.raises(UserError, match="in use by process 4321 on "):
        RunLock(tmp_path, **PATIENT).acquire()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    def refused(answer: Any) -> None:
        os.chdir(tmp_path)
        os.chmod(".", 0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            RunLock(Path("."), **QUICK).acquire()
        except UserError as error:
            answer.send(str(error))

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=refused, args=(theirs,))
    process.start()
    assert ours.poll(20)
    assert ours.recv().startswith("run.lock cannot be made or read (Permission denied); give an --out")
    process.join()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_neither_hangs_a_job_nor_leads_it_out(tmp_path: Path, kind: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "run"
    outside.write_text("as it was")
    inside.mkdir()
    make = {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda path: os.symlink(outside, path)}
    make[kind](inside / "run.lock")
    lock = RunLock(inside, **QUICK)
    if kind == "pipe":
        with lock:
            pass
    else:
        with pytest.raises(UserError, match="cannot be made or read"):
            lock.acquire()
    assert outside.read_text() == "as it was"


def test_who_stood_still_and_lost_the_folder_is_told_and_leaves_it_alone(tmp_path: Path, elsewhere) -> None:
    slept = RunLock(tmp_path, beat_seconds=30, watch_seconds=0.1)
    with slept:
        elsewhere()
        heir = RunLock(tmp_path, **QUICK)
        with heir:
            slept._write(7)  # the beat of one that wakes up
            with pytest.raises(TrainingStopped, match="was taken over by process .* on node7"):
                slept.check()
            slept.release()
            heir.check()
            assert json.loads((tmp_path / "run.lock").read_text())["host"] == "node7"
    assert list(tmp_path.iterdir()) == []


JOBS, ROUNDS = 3, 40


def lay_nothing(folder: Path, dead: dict[str, Any]) -> None: ...


def lay_dead(folder: Path, dead: dict[str, Any]) -> None:
    write(folder, dead)
    write(folder, {**dead, "file": (folder / "run.lock").stat().st_ino})


def lay_dead_heirs(folder: Path, dead: dict[str, Any]) -> None:
    """Two who died, one after the other, before they could rename their claims."""
    lay_dead(folder, dead)
    for claimed, token in ((dead["token"], "a" * 32), ("a" * 32, "b" * 32)):
        path = folder / f"run.lock.{claimed}"
        path.touch()
        path.write_text(json.dumps({**dead, "token": token, "file": path.stat().st_ino}))


def lay_still(folder: Path, dead: dict[str, Any]) -> None:
    write(folder, {**dead, "host": "node9"})


def lay_empty(folder: Path, dead: dict[str, Any]) -> None:
    (folder / "run.lock").touch()


@pytest.mark.parametrize(
    ("lay", "rounds"),
    [(lay_nothing, ROUNDS), (lay_dead, ROUNDS), (lay_dead_heirs, ROUNDS), (lay_still, 5), (lay_empty, 5)],
)
def test_of_jobs_that_start_at_the_same_moment_one_wins(tmp_path: Path, lay: Callable, rounds: int) -> None:
    dead = left_by_a_killed_job(tmp_path)
    (tmp_path / "run.lock").unlink()
    answers, meet = FORK.Queue(), FORK.Barrier(JOBS + 1)

    def job(number: int) -> None:
        random.seed(number)
        for _ in range(rounds):
            lock = RunLock(tmp_path, beat_seconds=0.02, watch_seconds=0.15)
            look = lock._holder
            lock._holder = lambda look=look: (look(), time.sleep(random.random() * 0.004))[
                0
            ]  # what is seen is old by then
            meet.wait(20)
            try:
                lock.acquire()
                answers.put((number, "won"))
            except UserError as error:
                answers.put((number, str(error)))
            meet.wait(20)  # nobody lets go before all have tried
            lock.release()
            meet.wait(20)

    jobs = [FORK.Process(target=job, args=(number,)) for number in range(JOBS)]
    for process in jobs:
        process.start()
    try:
        for _ in range(rounds):
            lay(tmp_path, dead)
            meet.wait(20)
            told = dict(answers.get(timeout=20) for _ in range(JOBS))
            meet.wait(20)
            winners = [number for number, answer in told.items() if answer == "won"]
            assert len(winners) == 1, told
            assert all("is in use by" in answer for number, answer in told.items() if number not in winners), told
            meet.wait(20)
            assert list(tmp_path.iterdir()) == []
    finally:
        for process in jobs:
            process.join(1)
            process.kill()
            process.join()


def test_whenever_a_job_is_killed_the_next_has_the_folder(tmp_path: Path) -> None:
    def busy() -> None:
        while True:
            with RunLock(tmp_path, beat_seconds=0.001, watch_seconds=0.1):
                time.sleep(0.001)

    for number in range(20):
        process = FORK.Process(target=busy)
        process.start()
        time.sleep(0.02 + 0.0011 * number)
        process.kill()
        process.join()
        with RunLock(tmp_path, beat_seconds=0.01, watch_seconds=0.1) as lock:
            lock.check()
        assert list(tmp_path.iterdir()) == []
