"""Ranks of a restarted job meet under a prefix that nothing of an earlier attempt gets into."""

import json
import multiprocessing
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from torch.distributed import HashStore, PrefixStore, Store, TCPStore

import simsiam.distributed.store
from simsiam.distributed.store import agree_on_prefix, fresh_store
from simsiam.errors import UserError
from tests.conftest import ROOT, clean_environment

LONG = timedelta(seconds=60)


def meet(store: Store, rank: int, world_size: int, late: float = 0.0) -> str:
    """Agrees with the others, and returns what rank 0 then wrote where nothing may have been written before."""
    time.sleep(late)
    fresh = agree_on_prefix(store, rank, world_size, LONG)
    fresh.set_timeout(timedelta(seconds=20))
    if rank == 0:
        assert not fresh.check(["word"])
        fresh.set("word", uuid4().hex)
    return fresh.get("word").decode()


def all_meet(store: Store, late: list[float]) -> list[str]:
    with ThreadPoolExecutor(len(late)) as pool:
        return list(pool.map(lambda rank: meet(store, rank, len(late), late[rank]), range(len(late))))


@pytest.mark.parametrize("late", [[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0.6]])
def test_one_store_serves_attempt_after_attempt(late: list[float]) -> None:
    store = HashStore()
    words = [all_meet(store, late[:size]) for size in (3, 3, 2, 3)]
    assert all(len(set(heard)) == 1 for heard in words)
    assert len({heard[0] for heard in words}) == len(words)


@pytest.mark.parametrize("late", [[0, 0.3], [0.3, 0]])
@pytest.mark.parametrize("opened", [False, True])
def test_nothing_that_dead_ranks_left_is_taken(late: list[float], opened: bool) -> None:
    store = HashStore()
    desk = PrefixStore("handshake/2", store)
    desk.set("token", json.dumps(["old", ["dead 0", "dead 1"], opened]))
    for rank in range(2):
        desk.set(f"hello/{rank}", f"dead {rank}")
        desk.set(f"ack/{rank}", "old")
    PrefixStore("attempt/old", store).set("word", "of the dead")
    assert len(set(all_meet(store, late))) == 1
    assert json.loads(desk.get("token"))[0] != "old"


def test_a_failure_of_nccl_in_one_attempt_is_unknown_to_the_next() -> None:
    """Its threads write it beneath all prefixes, and abort where they find it."""
    store = HashStore()
    store.set("exception_dump", "rank 1")
    all_meet(PrefixStore("/worker/attempt_1", PrefixStore("", store)), [0, 0])
    assert not store.check(["exception_dump"])


def test_rank_0_names_who_did_not_come() -> None:
    store = HashStore()
    desk = PrefixStore("handshake/4", store)
    for rank in (1, 2):  # of these an earlier attempt left everything
        desk.set(f"hello/{rank}", "dead")
        desk.set(f"ack/{rank}", "old")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(agree_on_prefix, store, 3, 4, timedelta(seconds=-4))  # it waits five more
        with pytest.raises(UserError, match="Ranks 1, 2 of 4 did not come"):
            agree_on_prefix(store, 0, 4, timedelta(seconds=0.5))
        assert isinstance(other.exception(), TimeoutError)


def test_a_rank_without_rank_0_does_not_wait_for_ever() -> None:
    with pytest.raises(TimeoutError, match="rank 0"):
        agree_on_prefix(HashStore(), 1, 2, timedelta(seconds=-4.8))


def test_the_second_process_of_a_rank_ends_the_first() -> None:
    store = HashStore()
    desk = PrefixStore("handshake/2", store)
    desk.set("hello/1", "here")

    def another() -> None:
        while not desk.check(["token"]):
            time.sleep(0.01)
        desk.set("hello/0", "another")

    threading.Thread(target=another).start()
    with pytest.raises(UserError, match="Another process joined this job as rank 0"):
        agree_on_prefix(store, 0, 2, LONG)


def test_ranks_killed_anywhere_in_the_handshake_leave_nothing_behind() -> None:
    """Attempts of three processes, of which most are killed at a random moment; none that ends has parted ways."""
    draw, fork = random.Random(0), multiprocessing.get_context("fork")
    # Served by a process of its own: a fork of this one would wait for ever for a lock that a thread of a store holds.
    ports = fork.SimpleQueue()
    server = fork.Process(target=_serve, args=(ports,), daemon=True)
    server.start()
    port = ports.get()
    heard: list[list[str]] = []
    for attempt in range(10):
        results = fork.SimpleQueue()
        ranks = [fork.Process(target=_meet_in_a_process, args=(port, rank, results)) for rank in range(3)]
        for process in draw.sample(ranks, 3):
            process.start()
            time.sleep(draw.uniform(0, 0.03))
        if attempt % 5 < 4:
            for process in draw.sample(ranks, draw.choice([1, 3])):
                process.kill()
            time.sleep(draw.uniform(0, 0.05))
            for process in ranks:
                process.kill()
        else:
            heard.append([results.get() for _ in ranks])
        for process in ranks:
            process.join()
    server.kill()
    assert len(heard) == 2
    assert all(len(set(words)) == 1 for words in heard)
    assert heard[0][0] != heard[1][0]


def _serve(ports: multiprocessing.SimpleQueue) -> None:
    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ports.put(served.port)
    time.sleep(600)


def _meet_in_a_process(port: int, rank: int, results: multiprocessing.SimpleQueue) -> None:
    results.put(meet(TCPStore("127.0.0.1", port, is_master=False), rank, 3))


def test_a_store_of_this_attempt_alone_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    store = fresh_store(0, 1, LONG)
    store.set("key", "value")
    assert "key" in [key.decode() if isinstance(key, bytes) else key for key in store.list_keys()]


def test_a_rank_whose_torchrun_is_gone_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # and not listened to
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setattr(simsiam.distributed.store, "_ANSWERS", timedelta(seconds=0.5))
        with pytest.raises(UserError, match="does not answer; see whether that torchrun has ended"):
            fresh_store(1, 2, timedelta(hours=1))


KILLED = """
import os, signal, sys
import torch, torch.distributed as dist
from simsiam.distributed.runtime import running

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with running("cpu") as runtime:
    for step in range(20):
        total = torch.ones(1000)
        dist.all_reduce(total)
        if attempt < int(sys.argv[1]) and step == 10 and runtime.rank == attempt % 2:
            os.kill(os.getpid(), signal.SIGKILL)
    # In one piece: what two ranks print may mix within a line.
    os.write(1, f"rank {runtime.rank} attempt {attempt} sum {total[0].item():g}\\n".encode())
"""


def test_torchrun_recovers_from_a_killed_rank_every_time(tmp_path: Path) -> None:
    """Without the handshake each of these restarts fails about every other time."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    done = subprocess.run(
        [*command, str(script), "2"],
        cwd=ROOT,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The last attempt that torchrun allows: none was spent on anything but the two kills.
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} attempt 2 sum 2" for rank in range(2)]
