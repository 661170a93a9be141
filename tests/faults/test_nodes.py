"""Two machines: cut cables, lost nodes, wrong clocks; by launch/, with real torchruns and their rendezvous."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import RUN, checkpoint, digest, left_behind, logged, run
from tests.faults.nodes import Cluster, cluster
from tests.processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

STEPS = 200  # so many that a second job, a cable or a clock has seconds to get in between on any machine
WITH_PREFLIGHT = [word for word in RUN if word != "--skip-preflight"]
WORDS = ("pretrain.py", *WITH_PREFLIGHT, "--max-steps", STEPS, "--out")

# sitecustomize.py of a node whose wall clock is wrong: for all that Python asks, and for torchrun's rendezvous, which
# asks the class `datetime`. That one is exchanged in its module alone, since others send its objects to the other node.
CLOCK = """
import datetime, importlib.machinery, sys, time

right, plain = time.time, datetime.datetime
time.time = lambda: right() + {seconds}

class Wrong(plain):
    @classmethod
    def now(cls, zone=None):
        return plain.fromtimestamp(time.time(), zone)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torch.distributed.elastic.rendezvous.dynamic_rendezvous":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), setattr(module, "datetime", Wrong))
        return spec

sys.meta_path.insert(0, Finder)
"""
# The kernel gives up a peer that does not answer after 15 resends, a quarter of an hour, and torchrun waits for that.
GIVES_UP_SOON = "echo 8 >/proc/sys/net/ipv4/tcp_retries2"


@pytest.fixture(scope="module")
def one_core_each() -> Iterator[None]:
    """Gives two forked ranks one thread each, as nodes of one core have."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def undisturbed(one_core_each: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("nodes") / "undisturbed"
    assert run(2, out, "--max-steps", STEPS) == [0, 0]
    return digest(out, STEPS)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made


def ends(nodes: Cluster, started: list[subprocess.Popen], seconds: float = 600) -> list[int]:
    """Exit codes of launch scripts, and that nothing of theirs runs on."""
    try:
        codes = [process.wait(seconds) for process in started]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not ended within {seconds} s: {nodes.said()[-4000:]}") from None
    for node in nodes.nodes:
        wait_until(lambda node=node: not node.processes(), 60)
    return codes


def rank_processes(nodes: Cluster) -> set[int]:
    """Process numbers of the ranks on both nodes."""
    found = [each for node in nodes.nodes for each in node.processes().items()]
    return {pid for pid, words in found if "pretrain.py" in words and "torch" not in words and "nsenter" not in words}


def saved(out: Path, step: int, started: list[subprocess.Popen]) -> None:
    """Waits until a checkpoint is complete."""
    wait_until((checkpoint(out, step) / "manifest.json").exists, 300, started)


def is_as_undisturbed(out: Path, undisturbed: str) -> None:
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []


def test_hosts_sh_starts_two_nodes(nodes: Cluster, undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = nodes.hosts(*WORDS, out)
    assert ends(nodes, [started]) == [0], nodes.said()[-4000:]
    assert "2 rank(s) agree on" in nodes.said()
    is_as_undisturbed(out, undisturbed)


def test_a_cable_that_is_out_for_25_seconds(nodes: Cluster, undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = nodes.launch(*WORDS, out)
    saved(out, 5, started)
    nodes.switch.cut.add(1)
    time.sleep(25)
    assert [process.poll() for process in started] == [None, None]
    nodes.switch.cut.clear()
    assert ends(nodes, started) == [0, 0], nodes.said()[-4000:]
    is_as_undisturbed(out, undisturbed)


def test_a_cable_that_stays_out_ends_both_nodes(nodes: Cluster, undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for node in nodes.nodes:  # how long torchrun waits for a node to come back: ten minutes otherwise
        node.sets("export PET_RDZV_CONF=$PET_RDZV_CONF,join_timeout=60")
        node.sets(GIVES_UP_SOON)
    started = nodes.launch(*WORDS, out)
    saved(out, 5, started)
    ranks = rank_processes(nodes)
    nodes.switch.cut.add(1)
    wait_until(lambda: not ranks & rank_processes(nodes), 120)
    assert 0 not in ends(nodes, started)
    assert "error: the run hangs: " in nodes.said()
    nodes.switch.cut.clear()
    assert ends(nodes, nodes.launch(*WORDS, out)) == [0, 0], nodes.said()[-4000:]
    is_as_undisturbed(out, undisturbed)


def test_a_network_that_is_slow_and_loses(nodes: Cluster, one_core_each: None, tmp_path: Path) -> None:
    few = ("--max-steps", 6)
    assert run(2, tmp_path / "undisturbed", *few) == [0, 0]
    nodes.switch.delay, nodes.switch.loss = 0.1, 0.05  # either way, so an answer takes 0.2 s
    out = tmp_path / "run"
    assert ends(nodes, nodes.launch(*WORDS[:-1], *few, "--out", out), 1200) == [0, 0], nodes.said()[-4000:]
    assert digest(out, 6) == digest(tmp_path / "undisturbed", 6)


def test_a_node_that_is_lost_and_replaced(nodes: Cluster, undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stays, lost = nodes.launch(*WORDS, out)
    saved(out, 5, [stays])
    nodes.nodes[1].lose()
    lost.wait()
    time.sleep(5)
    nodes.replace(1)
    assert ends(nodes, [stays, nodes.launch_on(1, *WORDS, out)]) == [0, 0], nodes.said()[-4000:]
    is_as_undisturbed(out, undisturbed)


def test_a_node_that_returns_with_its_old_rank(nodes: Cluster, undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stays, killed = nodes.launch(*WORDS, out)
    saved(out, 5, [stays])
    nodes.nodes[1].kill_processes()
    killed.wait()
    assert ends(nodes, [stays, nodes.launch_on(1, *WORDS, out)]) == [0, 0], nodes.said()[-4000:]
    is_as_undisturbed(out, undisturbed)


def test_a_lost_rendezvous_ends_the_others_and_the_run_goes_on(
    nodes: Cluster, undisturbed: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    nodes.nodes[1].sets(GIVES_UP_SOON)
    lost, left = nodes.launch(*WORDS, out)
    saved(out, 5, [left])
    ranks = rank_processes(nodes)
    nodes.nodes[0].lose()
    lost.wait()
    wait_until(lambda: not ranks & set(nodes.nodes[1].processes()), 120)
    assert "rank 1 has not reached the store of the job for" in nodes.said()
    assert left.wait(600) != 0
    wait_until(lambda: not nodes.nodes[1].processes(), 60)
    nodes.replace(0)
    assert (out / "run.lock").exists()
    assert ends(nodes, nodes.launch(*WORDS, out)) == [0, 0], nodes.said()[-4000:]
    assert "run.lock of process" in nodes.said()
    is_as_undisturbed(out, undisturbed)


def test_a_world_smaller_than_asked_is_refused_before_the_first_step(nodes: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run"
    alone = nodes.launch_on(0, *WORDS[:-1], "--world-size", 2, "--out", out, PET_NNODES="1", PET_MAX_RESTARTS="0")
    assert ends(nodes, [alone]) == [1]
    assert "The run has 1 rank(s), but --world-size asks for 2;" in nodes.said()
    assert not (out / "metrics.jsonl").exists()
    assert left_behind(out) == []


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_wrong_clock_is_named(nodes: Cluster, tmp_path: Path, seconds: int) -> None:
    shifted = tmp_path / "shifted/sitecustomize.py"
    shifted.parent.mkdir()
    shifted.write_text(CLOCK.format(seconds=seconds))
    nodes.nodes[1].sets(f"export PYTHONPATH={shifted.parent}")
    out = tmp_path / "run"
    started = nodes.launch(*WORDS, out, PET_MAX_RESTARTS="0")
    assert 0 not in ends(nodes, started)
    alone, named = "but --world-size asks for 2;", f"is {abs(seconds)} s {'behind' if seconds < 0 else 'ahead of'}"
    assert alone in nodes.said() or named in nodes.said()
    assert not (out / "metrics.jsonl").exists()


def test_the_second_of_two_jobs_in_a_folder_is_refused_while_the_first_lives(nodes: Cluster, tmp_path: Path) -> None:
    out, alone = tmp_path / "run", {"PET_NNODES": "1", "PET_MAX_RESTARTS": "0"}
    first = nodes.launch_on(0, *WORDS[:-1], "--max-steps", 100_000, "--out", out, **alone)
    saved(out, 5, [first])
    second = nodes.launch_on(1, *WORDS, out, **alone)
    assert second.wait(300) == 1
    assert f"{out} is in use by process" in nodes.said()
    assert "on node0 since" in nodes.said()
    assert first.poll() is None

    nodes.nodes[0].kill_processes()
    first.wait()
    step = max(logged(out))
    heir = nodes.launch_on(1, *WORDS[:-1], "--max-steps", step + 1, "--out", out, **alone)
    assert ends(nodes, [heir]) == [0]
    assert "is taken over: its beat has stood still" in nodes.said()
    assert max(logged(out)) == step + 1
    assert left_behind(out) == []


def test_a_second_job_at_the_same_rendezvous_does_not_disturb_the_first(
    nodes: Cluster, undisturbed: str, tmp_path: Path
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    first = nodes.launch(*WORDS, out)
    saved(out, 5, first)
    second = nodes.launch(*WORDS, other)
    assert ends(nodes, first) == [0, 0], nodes.said()[-4000:]
    is_as_undisturbed(out, undisturbed)
    assert 0 not in ends(nodes, second)
    assert not (other / "metrics.jsonl").exists()
