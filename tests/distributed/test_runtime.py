"""Ranks end when they must: with the agent that started them, and with their own exit code after an exception."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed import runtime as module
from simsiam.distributed.runtime import running
from simsiam.errors import OutOfMemory, UserError
from tests.conftest import ROOT, clean_environment
from tests.processes import free_port, runs, wait_until

ENVIRONMENT = {**clean_environment(), "PYTHONPATH": str(ROOT)}

WAITS = """
import os, pathlib, sys, time
from simsiam.distributed.runtime import running

with running("cpu") as runtime:
    runtime.barrier()
    (pathlib.Path(sys.argv[1]) / f"pid_{runtime.rank}").write_text(str(os.getpid()))
    time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_ranks_do_not_outlive_a_killed_agent(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    agent = subprocess.Popen(
        [*command, str(tmp_path / "waits.py"), str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    files = [tmp_path / "pid_0", tmp_path / "pid_1"]
    try:
        wait_until(lambda: all(file.exists() and file.read_text() for file in files), 120)
    finally:
        agent.kill()
        agent.wait()
    wait_until(lambda: not any(runs(int(file.read_text())) for file in files), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_began_when_its_torchrun_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setattr(module, "end_with_parent", lambda: None)
    monkeypatch.setattr(module, "process_age", lambda pid: 500.0 if pid == os.getppid() else None)
    with running("cpu") as runtime:
        assert 500 <= time.monotonic() - runtime.began < 520
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with running("cpu") as runtime:
        assert time.monotonic() - runtime.began < 20


def test_all_the_files_that_the_system_grants_may_be_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with running("cpu"):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 79 GiB. See documentation")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60), too_much_for_a_gpu], ids=["of a CPU", "of a GPU"])
def test_memory_that_runs_out_is_a_sentence_that_says_what_takes_less(allocate: Callable) -> None:
    says = r"^rank 0 has no memory left on cpu \(.*allocate.*\); lower --batch-size"
    with pytest.raises(OutOfMemory, match=says), running("cpu"):
        allocate()


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a driver that is too old for this torch."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it. More.")

    (folder / "version").touch()
    monkeypatch.setattr(module, "_NVIDIA_DRIVER", folder / "version")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_driver_that_torch_cannot_use_is_refused_or_warned_of_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    driver(tmp_path, monkeypatch)
    with pytest.raises(
        UserError, match=r"--device cuda, but torch .* \(The NVIDIA driver .* too old \(found version 11040"
    ):
        module.choose_device("cuda", 0)
    assert module.choose_device("auto", 0).type == "cpu"
    assert "too old (found version 11040)), though there is an NVIDIA driver" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert module.choose_device("auto", 0).type == "cpu"
    assert module.choose_device("cpu", 0).type == "cpu"
    assert capsys.readouterr().err == ""


def test_another_number_of_ranks_than_asked_for_is_refused_by_each_for_itself() -> None:
    """A slow clock leaves one node alone with WORLD_SIZE=1: there is nobody to compare with."""
    with pytest.raises(UserError, match=r"The run has 1 rank\(s\), but --world-size asks for 2; "), running("cpu", 2):
        pytest.fail("it began")


LOSES = """
import os, sys
import torch, torch.distributed as dist
from simsiam.distributed.runtime import running
from simsiam.errors import ends_with_a_sentence

@ends_with_a_sentence
def main():
    with running("cpu") as runtime:
        runtime.barrier()
        if runtime.rank == 0:
            os._exit(9)
        dist.all_reduce(torch.ones(4))

main()
"""


def test_who_loses_the_others_says_so_in_a_sentence(tmp_path: Path) -> None:
    (gone, _), (left, told) = both(tmp_path, LOSES)
    assert (gone, left) == (9, 1)
    assert "error: rank 1 lost the others (" in told
    assert "Traceback" not in told


RAISES = """
import sys, time
import torch, torch.distributed as dist
from simsiam.distributed.runtime import running
from simsiam.errors import UserError, ends_with_a_sentence

@ends_with_a_sentence
def main():
    with running("cpu") as runtime:
        runtime.barrier()
        if runtime.rank == 0:
            dist.all_reduce(torch.ones(4), async_op=True)  # the other never comes to it
            raise UserError("a mistake")
        time.sleep(600)

main()
"""


ALONE = """
import os
from simsiam.distributed.runtime import running
from simsiam.errors import UserError, ends_with_a_sentence

@ends_with_a_sentence
def main():
    if os.environ["RANK"] == "1":
        raise UserError("no GPU here")
    with running("cpu"):
        pass

main()
"""

SLOW = """
import time
from datetime import timedelta
from simsiam.distributed import runtime as module

module._COLLECTIVE = timedelta(seconds=2)
with module.running("cpu") as runtime:
    assert [runtime.on_main(lambda: time.sleep(4) or at) for at in range(2)] == [0, 1]
"""


def test_a_rank_that_raises_ends_with_its_code_whatever_its_group_waits_for(tmp_path: Path) -> None:
    code, told = both(tmp_path, RAISES, wanted=1)[0]
    assert code == 2, told
    assert "error: a mistake" in told
    assert "terminate called" not in told


def test_a_mistake_that_one_rank_alone_has_met_is_told_by_it_under_torchrun(tmp_path: Path) -> None:
    """As a GPU that only it lacks; what rank 0 has met for all is told once."""
    (tmp_path / "script.py").write_text(ALONE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py")], cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: rank 1: no GPU here"]


def test_ranks_with_and_without_a_gpu_do_not_wait_for_each_other() -> None:
    store = dist.HashStore()
    store.set("device/0", "cuda")
    with pytest.raises(UserError, match=r"^Rank 1 of 2 cannot use a GPU, and the others do; see what nvidia-smi"):
        module._check_devices(store, 1, 2, "cpu")
    module._check_devices(store, 1, 2, "cuda")


def test_a_rank_takes_its_own_gpu_or_the_one_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    assert module.choose_device("auto", 3) == torch.device("cuda", 3)
    with pytest.raises(UserError, match=r"^Rank 4 of this node has no GPU: .* than the 4 device\(s\)"):
        module.choose_device("auto", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"^Rank 3 of this node has no GPU"):
        module.choose_device("cuda", 3)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert module.choose_device("cuda", 3) == torch.device("cuda", 0)


def test_ranks_wait_for_what_rank_0_makes_outside_a_collective(tmp_path: Path) -> None:
    """A collective would give it as long as the group's timeout, here two seconds."""
    assert both(tmp_path, SLOW) == [(0, ""), (0, "")]


def both(folder: Path, script: str, wanted: int = 2) -> list[tuple[int, str]]:
    """Two ranks of a script: exit code and standard error of the first so many; what does not end by then is killed."""
    (folder / "script.py").write_text(script)
    served = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py")],
            cwd=ROOT,
            env={**ENVIRONMENT, **served, "RANK": str(rank)},
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        return [(rank.wait(timeout=120), rank.communicate()[1]) for rank in ranks[:wanted]]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
