"""launch/: a run that is asked to end is queued or started again, and no other is."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.parity.test_resume import SMALL
from tests.processes import wait_until
from tests.test_launch import ALLOCATION, Done, environment, run_script

# What torchrun's stand-in does: changes the mark of the run folder as a run would, and ends with torchrun's status.
SAVED = "mkdir -p $OUT; rm -f $OUT/*ed; touch $OUT/preempted; exit 1"
COMPLETE = "mkdir -p $OUT; rm -f $OUT/*ed; touch $OUT/completed; exit 1"
FAILED = "mkdir -p $OUT; exit 1"
WAITS = """
for name in TERM USR1 INT; do trap "echo got $name; $THEN" $name; done
touch "$READY${PET_NODE_RANK:-0}"
for _ in {1..600}; do sleep 0.05; done
"""


def submit(tmp_path: Path, script: str, *words: str, **more: str) -> Done:
    return run_script(tmp_path, f"slurm/{script}", *words, **{**ALLOCATION, "LOG": str(tmp_path), **more})


@pytest.mark.parametrize(
    ("variables", "queued", "status", "said"),
    [
        ({"DOES": SAVED}, ["77"], 0, "Job 77 has saved and is queued again"),
        ({"DOES": SAVED, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, ["70_3"], 0, "Job 70_3 has saved"),
        ({"DOES": SAVED, "STATE": "COMPLETING"}, [], 1, "is being ended by scancel or its time limit"),
        ({"DOES": SAVED, "REFUSES": "1"}, ["77"], 1, "error: job 77 has saved, but cannot be queued again"),
        ({"DOES": COMPLETE}, [], 0, ""),
        ({"DOES": FAILED}, [], 1, ""),
        ({"DOES": "exit 0"}, [], 0, ""),
    ],
    ids=[
        "saved",
        "saved, in an array",
        "saved, but cancelled",
        "saved, requeue refused",
        "complete",
        "failed",
        "ended",
    ],
)
@pytest.mark.parametrize("before", ["", "preempted", "completed"])
def test_a_job_is_queued_again_where_its_run_has_saved(
    tmp_path: Path, variables: dict, queued: list, status: int, said: str, before: str
) -> None:
    if before:  # the mark of an earlier life says nothing about this one
        name = "cifar10-r18-seed3" if "SLURM_ARRAY_TASK_ID" in variables else "cifar10-r18"
        (tmp_path / name).mkdir()
        (tmp_path / name / before).touch()
    done = submit(tmp_path, "pretrain.sbatch", "cifar10-r18", **variables)
    assert [words[1] for words in done.of("scontrol") if words[0] == "requeue"] == queued
    assert done.status == status
    assert said in done.said


def test_a_preempted_distillation_goes_no_further(tmp_path: Path) -> None:
    done = submit(tmp_path, "distillation.sbatch", "simsiam-kd-cifar10", DOES=SAVED)
    assert done.status == 0
    assert [words[0] for words in done.of("torchrun")] == ["pretrain.py"]
    done = submit(tmp_path, "distillation.sbatch", "simsiam-kd-cifar10", DOES=FAILED)
    assert done.status == 1
    assert [words[0] for words in done.of("torchrun")] == ["pretrain.py"]


def signalled(
    tmp_path: Path, number: signal.Signals, *command: object, nodes: int = 1, then: str = SAVED, **more: str
) -> tuple[int, str]:
    """Signals a command, run on stand-ins, once each node's torchrun is there; its exit status and what it said.

    A torchrun that is signalled does `then`.
    """
    env = environment(tmp_path, DOES=WAITS, THEN=then, READY=str(tmp_path / "ready"), **more)
    job = subprocess.Popen(
        ["bash", *command], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: all((tmp_path / f"ready{node}").exists() for node in range(nodes)), 300, [job])
        job.send_signal(number)
        said, _ = job.communicate(timeout=300)
    finally:
        end_session(job)
    return job.returncode, said


def free_port() -> int:
    """A port that a job's number can stand for: from 10000 to 29999, another for each process that asks."""
    begin = 10000 + 97 * os.getpid() % 20000
    for port in (*range(begin, 30000), *range(10000, begin)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("no port is free")


def end_session(job: subprocess.Popen) -> None:
    """Ends what a failed test has left of a job that has a session of its own."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(job.pid, signal.SIGTERM)  # torchrun's ranks have sessions of their own: it has to tell them
        job.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


WORDS = ("pretrain.py", "--data", "digits", "--out", "run")


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_pod_hands_signals_on_and_ends_with_75(tmp_path: Path, name: str) -> None:
    out = str(tmp_path / "run")
    status, said = signalled(tmp_path, signal.Signals[f"SIG{name}"], ROOT / "launch/pod.sh", *WORDS[:-1], out)
    assert (status, said.splitlines()) == (75, [f"got {name}"])


@pytest.mark.parametrize(
    ("then", "status"),
    [("exit 1", 75), (f"{COMPLETE}", 0), ("mkdir -p $OUT; touch $OUT/failed; exit 1", 1), ("exit 0", 0)],
    ids=["before its first step", "after its last step", "failed meanwhile", "no run at all"],
)
def test_a_pod_that_is_asked_to_end_and_has_nothing_to_save_wants_to_go_on(
    tmp_path: Path, then: str, status: int
) -> None:
    out = str(tmp_path / "run")
    ended = signalled(tmp_path, signal.SIGTERM, ROOT / "launch/pod.sh", *WORDS[:-1], out, then=then)
    assert ended == (status, "got TERM\n")


def test_a_distillation_whose_first_stage_ends_as_the_time_does_leaves_the_second_for_later(tmp_path: Path) -> None:
    allocation = {**ALLOCATION, "LOG": str(tmp_path)}
    script = ROOT / "launch/slurm/distillation.sbatch"
    status, said = signalled(tmp_path, signal.SIGUSR1, script, "simsiam-kd-cifar10", then=COMPLETE, **allocation)
    assert (status, said.splitlines()) == (0, ["got USR1", "Job 77 has saved and is queued again"])
    calls = (tmp_path / "calls").read_text()
    assert ("lincls.py" in calls, "scontrol\trequeue\t77\n" in calls) == (False, True)


def test_a_pod_says_how_its_run_ended(tmp_path: Path) -> None:
    words = ("pretrain.py", "--out", str(tmp_path / "run"))
    assert [run_script(tmp_path, "pod.sh", *words, DOES=does).status for does in (SAVED, FAILED, COMPLETE)] == [
        75,
        1,
        0,
    ]
    collapsed = "printf 3 >$OUT/failed; exit 1"  # as a mark of now, and then as one of an earlier start
    assert [run_script(tmp_path, "pod.sh", *words, DOES=does).status for does in (collapsed, FAILED)] == [3, 1]
    done = run_script(tmp_path, "pod.sh", "pretrain.py")
    assert (done.status, done.calls) == (2, [])
    assert done.said.startswith("error: no --out in:")


@pytest.mark.parametrize(("name", "got"), [("TERM", "TERM"), ("INT", "TERM"), ("HUP", "TERM"), ("USR1", "USR1")])
def test_hosts_hands_signals_on_to_every_machine(tmp_path: Path, name: str, got: str) -> None:
    status, said = signalled(
        tmp_path, signal.Signals[f"SIG{name}"], ROOT / "launch/hosts.sh", "node7,me@node8",
        *WORDS[:-1], str(tmp_path / "run"), nodes=2,
    )  # fmt: skip
    assert (status, sorted(said.splitlines())) == (75, ["12 users"] * 4 + [f"got {got}"] * 2)


def test_hosts_gives_each_machine_its_part_and_ends_with_the_worst_status(tmp_path: Path) -> None:
    does = (
        'echo "$PET_NODE_RANK $PET_NNODES $PET_RDZV_ENDPOINT $PET_RDZV_CONF $PET_LOCAL_ADDR $NCCL_SOCKET_IFNAME"; '
        "exit $PET_NODE_RANK"
    )
    words = ("pretrain.py", "--data", "it's a; b", "--out", str(tmp_path))
    given = {"PET_MASTER_PORT": "12345", "PET_NPROC_PER_NODE": "4", "NCCL_SOCKET_IFNAME": "^docker0,'lo"}
    done = run_script(tmp_path, "hosts.sh", "me@node7,node8", *words, DOES=does, **given)
    parts = [
        f"{node} 2 node7:12345 is_host={1 - node},read_timeout=300 node{7 + node} ^docker0,'lo" for node in range(2)
    ]
    assert (done.status, sorted(done.said.splitlines())) == (1, sorted([*parts, "12 users", "12 users"]))
    assert done.of("torchrun") == [["pretrain.py", "--world-size", "8", *words[1:]]] * 2
    elastic = run_script(tmp_path, "hosts.sh", "node7,node8", *words, PET_NNODES="1:2")
    assert elastic.of("torchrun") == [list(words)] * 2


@pytest.mark.slow
def test_a_slurm_job_near_its_limit_saves_is_queued_again_and_goes_on_to_the_end(tmp_path: Path) -> None:
    # Two nodes of one CPU rank each: real torchruns that find each other, and the real trainer.
    number = free_port() - 10000
    allocation = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    places = {"SLURM_JOB_NODELIST": "localhost,localhost", "PET_LOCAL_ADDR": "localhost", "LOG": str(tmp_path)}
    env = environment(tmp_path, **{**ALLOCATION, **allocation, **places})
    (tmp_path / "bin/torchrun").write_text(f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    recipe, *settings = SMALL[1:]
    settings += ["--batch-size", 16, "--max-steps", 40]
    command = ["bash", ROOT / "launch/slurm/pretrain.sbatch", recipe, *map(str, settings)]
    run = tmp_path / "quickstart"

    def steps() -> list[int]:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        return [json.loads(line)["step"] for line in lines]

    job = subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        wait_until(lambda: len(steps()) > 2, 300, [job])
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=300)
    finally:
        end_session(job)
    stopped = len(steps())
    assert job.returncode == 0, said
    assert f"Job {number} has saved and is queued again" in said
    assert f"scontrol\trequeue\t{number}\n" in Path(env["CALLS"]).read_text()
    assert (run / "preempted").exists()
    assert 2 < stopped < 40

    # The job in its second life, as Slurm would start it again; this time it gets one node.
    again = subprocess.run(
        command, env={**env, "SLURM_JOB_NUM_NODES": "1"}, text=True, capture_output=True, check=False, timeout=120
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert (run / "completed").exists()
    assert not (run / "preempted").exists()
    assert steps() == list(range(1, 41))
