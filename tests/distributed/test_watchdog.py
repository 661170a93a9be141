"""A run that hangs ends by itself, says which rank is missing and where all stand; one that is slow is left alone."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed import watchdog
from simsiam.distributed.runtime import Runtime
from simsiam.distributed.watchdog import EXIT_CODE, Beat, Watchdog, born, judge

TIMEOUT = 3.0
HOST = "node17"


def beat(step: int = 9, phase: str = "", idle: float = 99.0, *, waits: bool = False, place: str = "a.py:1 f") -> Beat:
    return Beat(1, step, phase, idle, 30.0, waits, place, HOST, 1, "1")


def judged(*beats: Beat, silent: dict[int, float] | None = None) -> str:
    """The sentence about ranks 0, 1, ..., "" where they do not hang."""
    verdict = judge(dict(enumerate(beats)), dict.fromkeys(range(len(beats)), 0.0) | (silent or {}), 30.0)
    return verdict.sentence if verdict else ""


def test_ranks_without_beats_are_missing_whatever_they_did() -> None:
    beats = [beat(waits=True), beat(idle=0), beat(phase="saving"), beat()]
    verdict = judge(dict(enumerate(beats)), {0: 0.5, 1: 31.0, 2: 16.0, 3: 1.0}, 30.0)
    assert "rank 1 (training after step 9, at a.py:1 f, pid 1 on node17), rank 2 (saving" in verdict.sentence
    assert "rank 0" not in verdict.sentence
    assert "rank 3" not in verdict.sentence
    assert verdict.stopped == ((HOST, 1, "1"),) * 2


def test_the_missing_rank_is_the_one_that_differs() -> None:
    waiting = beat(waits=True, place="c10d.py:2 all_reduce")
    assert "missing: rank 1 (" in judged(waiting, beat(step=8, waits=True), waiting)
    assert "missing: rank 1 (" in judged(waiting, beat())
    assert "missing: rank 2 (" in judged(beat(), beat(), beat(place="b.py:1 g"))
    assert "missing: rank 0 (closed" in judged(beat(phase="closed"), waiting)
    assert "missing: rank 0 (" in judged(beat())
    assert "no rank stands out: rank 0 (" in judged(beat(), beat(place="b.py:1 g"))


def test_a_rank_that_may_have_stopped_is_not_judged_by_what_it_said_before() -> None:
    assert judged(beat(waits=True), beat(idle=0, waits=True), silent={1: 16.0}) == ""


def test_who_waits_for_a_rank_that_saves_does_not_hang() -> None:
    assert judged(beat(phase="saving"), beat(waits=True)) == ""
    assert judged(beat(phase="starting", step=0), beat(step=1, waits=True)) == ""
    assert "missing: rank 1" in judged(beat(phase="saving"), beat(step=8)), "the save waits for a step that never ends"
    assert judged(beat(phase="closed"), beat(phase="closed"), silent={0: 99.0}) == ""
    assert judged(beat(idle=29.0), beat(idle=29.0)) == ""


class Case(NamedTuple):
    """What a rank does before its fourth step, how the processes end, and what the one sentence has in it."""

    act: Callable[[Watchdog], None]
    codes: list[int]
    says: str
    rank: int = 1
    timeout: float = TIMEOUT


def stand_still(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hold_the_lock(watchdog: Watchdog) -> None:
    ctypes.PyDLL(None).sleep(600)


def wait_for_data(watchdog: Watchdog) -> None:
    time.sleep(600)


def evaluate(watchdog: Watchdog) -> None:
    with watchdog.paused("evaluating"):
        time.sleep(1.7 * TIMEOUT)


def be_suspended(watchdog: Watchdog) -> None:
    if os.fork() == 0:
        time.sleep(1.7 * TIMEOUT)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGTSTP)


def nothing(watchdog: Watchdog) -> None: ...


KILLED = -signal.SIGKILL
SILENT = "s of rank {} (training after step 3, at test_watchdog.py:"
MISSING = "missing: rank {} (training after step 3, at test_watchdog.py:"
CASES = {
    "stopped": Case(stand_still, [EXIT_CODE, KILLED], SILENT.format(1)),
    "rank 0 stopped": Case(stand_still, [KILLED, EXIT_CODE], SILENT.format(0), rank=0),
    "lock held": Case(hold_the_lock, [EXIT_CODE, KILLED], SILENT.format(1)),
    "asleep": Case(wait_for_data, [EXIT_CODE, EXIT_CODE], MISSING.format(1)),
    "long pause": Case(evaluate, [0, 0], ""),
    "asked to end": Case(stand_still, [EXIT_CODE, KILLED], SILENT.format(1), timeout=60.0),
    "store gone": Case(nothing, [EXIT_CODE, EXIT_CODE], "rank 0 has not reached the store of the job"),
    "alone asleep": Case(wait_for_data, [EXIT_CODE], MISSING.format(0), rank=0),
    "alone, lock held": Case(hold_the_lock, [1], "", rank=0),
    "alone, suspended": Case(be_suspended, [0], "", rank=0),
    "alone, off": Case(evaluate, [0], "", rank=0, timeout=0.0),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[int]]]:
    """All cases at once, for they mostly wait: the folder of each, and its exit codes."""
    fork = multiprocessing.get_context("fork")
    started = {}
    for name in CASES:
        folder, ranks = tmp_path_factory.mktemp("run"), range(len(CASES[name].codes))
        started[name] = folder, [fork.Process(target=_rank, args=(name, rank, folder)) for rank in ranks]
        for process in started[name][1]:
            process.start()
    server = fork.Process(target=_serve, args=(started["store gone"][0],))
    server.start()
    for _, processes in started.values():
        for process in processes:
            process.join(60)
            process.kill()
            process.join()
    server.kill()
    server.join()
    return {name: (folder, [p.exitcode for p in processes]) for name, (folder, processes) in started.items()}


def _rank(name: str, rank: int, folder: Path) -> None:
    case = CASES[name]
    ranks, store = len(case.codes), None
    with (folder / f"stderr_{rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    if name == "store gone":
        _wait_for(folder / "port")
        store = dist.TCPStore("127.0.0.1", int((folder / "port").read_text()), is_master=False)
    elif ranks > 1:
        store = dist.FileStore(str(folder / "store"), ranks)
    if store is not None:
        files = dist.FileStore(str(folder / "group"), ranks)
        dist.init_process_group("gloo", store=files, rank=rank, world_size=ranks)
    asked = [False]
    runtime = Runtime(rank, ranks, rank, torch.device("cpu"), store=store)
    watchdog = Watchdog(runtime, folder, case.timeout, lambda: asked[0])
    watchdog.start()
    for step in range(1, 6):
        if step == 4:
            asked[0] = name == "asked to end"
            if rank == case.rank:
                time.sleep(1)  # the others hear that it is here
                case.act(watchdog)
            if name == "store gone":
                (folder / "in midst").touch()
                time.sleep(60)
        if ranks > 1:
            dist.all_reduce(torch.ones(1))
        watchdog.beat(step)
    watchdog.close()
    os._exit(0)


def _serve(folder: Path) -> None:
    """A store in a process that is stopped in the midst of the run, as on a node that is cut off."""
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (folder / "new").write_text(str(served.port))
    (folder / "new").rename(folder / "port")
    _wait_for(folder / "in midst")
    os.kill(os.getpid(), signal.SIGSTOP)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


@pytest.mark.parametrize("name", CASES)
def test_each_ends_as_it_must(name: str, ended: dict[str, tuple[Path, list[int]]]) -> None:
    folder, codes = ended[name]
    case = CASES[name]
    assert codes == case.codes
    told = "".join((folder / f"stderr_{rank}").read_text() for rank in range(len(codes)))
    sentences = [line for line in told.splitlines() if line.startswith("error: the run hangs: ")]
    assert len(sentences) == bool(case.says), told
    assert case.says in "".join(sentences)
    assert all(str(folder / "stacks") in sentence for sentence in sentences)


@pytest.mark.parametrize("name", CASES)
def test_the_stacks_say_where_all_threads_stood(name: str, ended: dict[str, tuple[Path, list[int]]]) -> None:
    folder, codes = ended[name]
    if set(codes) == {0}:
        assert not (folder / "stacks").exists()
        return
    for rank, code in enumerate(codes):
        stacks = (folder / "stacks" / f"rank_{rank:05d}.txt").read_text()
        # A process that is stopped can write nothing; one whose lock is held can.
        wrote = code in (EXIT_CODE, 1) or CASES[name].act is hold_the_lock
        assert ("test_watchdog.py" in stacks and "in _rank" in stacks) == wrote
        waited = code == EXIT_CODE and len(codes) > 1 and rank != CASES[name].rank and name != "store gone"
        assert ("in all_reduce" in stacks) == waited


def test_a_process_is_known_by_when_it_began() -> None:
    assert born() == born(os.getpid()) != ""
    assert born(2**22 + 1) == "", "beyond the largest number of a process"


def test_a_large_step_is_no_hang_before_anything_is_known_but_the_first(tmp_path: Path) -> None:
    watchdog = Watchdog(Runtime(0, 1, 0, torch.device("cpu")), tmp_path, 30.0)
    watchdog._moved = watchdog._floor = time.monotonic() - 100  # when the first step began
    watchdog.beat(1)
    assert watchdog._beat(0).limit > 400
    watchdog.beat(2)
    assert watchdog._beat(0).limit == 30
    watchdog._moved -= 10
    watchdog.beat(3)
    assert watchdog._beat(0).limit > 40


@pytest.mark.parametrize(
    ("file", "waits"),
    [
        ("torch/distributed/distributed_c10d.py", True),
        ("torch/autograd/graph.py", True),
        ("simsiam/distributed/agreement.py", True),
        ("simsiam/distributed/collectives.py", True),
        ("simsiam/training/finite.py", True),
        ("simsiam/training/step.py", False),
        ("torch/nn/functional.py", False),
    ],
)
def test_a_thread_waits_for_others_where_their_answer_is_asked_for(file: str, waits: bool) -> None:
    """A function compiled as if it were of that file, called in a thread that stands still."""
    stands, goes_on, space = threading.Event(), threading.Event(), {}
    code = "def wait(stands, goes_on):\n    stands.set()\n    goes_on.wait()"
    exec(compile(code, f"/somewhere/{file}", "exec"), space)
    thread = threading.Thread(target=space["wait"], args=(stands, goes_on))
    thread.start()
    stands.wait()
    assert watchdog._where(thread.ident)[0] is waits
    goes_on.set()
    thread.join()
