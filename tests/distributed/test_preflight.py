"""Ranks that differ are named before the first step, on every rank alike."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed import preflight as module
from simsiam.distributed.preflight import code_version, git_commit, preflight, source_hash
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from tests.ranks import run_ranks

FACTS = {"settings": "s1", "dataset": "d1"}


def answers(ranks: int, folder: Path, change: Callable[[int, dict[str, str]], None], **more: Any) -> list[str]:
    """What preflight says on each rank; `change(rank, facts)` makes one of them different."""

    def on_a_rank() -> str:
        rank, facts = dist.get_rank() if dist.is_initialized() else 0, dict(FACTS)
        change(rank, facts)
        asked = {"checkpoint_bytes": 1000, **more}
        try:
            return preflight(Runtime(rank, ranks, rank, torch.device("cpu")), facts, folder=folder, **asked)
        except UserError as error:
            return f"refused: {error}"

    return run_ranks(ranks, on_a_rank) if ranks > 1 else [on_a_rank()]


def as_they_are(rank: int, facts: dict[str, str]) -> None: ...


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_that_agree_get_one_line_for_the_banner(ranks: int, tmp_path: Path) -> None:
    for line in answers(ranks, tmp_path, as_they_are):
        said = r", clocks within 0\.\d s, all-reduce \d+\.\d\d GB/s" if ranks > 1 else ""
        expected = rf"{ranks} rank\(s\) agree on code, torch, settings, dataset{said}, \d+(\.\d)? [GM]iB free"
        assert re.fullmatch(expected, line), line


def other_dataset(rank: int, facts: dict[str, str]) -> None:
    facts["dataset"] = "d2" if rank == 0 else "d1"


def other_settings_and_dataset(rank: int, facts: dict[str, str]) -> None:
    facts.update({"settings": "s2", "dataset": "d2"} if rank == 1 else {})


def each_its_own_dataset(rank: int, facts: dict[str, str]) -> None:
    facts["dataset"] = f"d{rank}"


def other_torch(rank: int, facts: dict[str, str]) -> None:
    if rank == 2:
        torch.__version__ = "2.12.0"


def other_code(rank: int, facts: dict[str, str]) -> None:
    if rank == 1:
        module.code_version = lambda: "0.0.9"


def slow_clock(rank: int, facts: dict[str, str]) -> None:
    if rank == 1:
        now = time.time
        time.time = lambda: now() - 60


def fast_clock(rank: int, facts: dict[str, str]) -> None:
    if rank == 1:
        now = time.time
        time.time = lambda: now() + 60


def wrong_clock_of_rank_0(rank: int, facts: dict[str, str]) -> None:
    slow_clock(1 - rank, facts)


def folder_of_its_own(rank: int, facts: dict[str, str]) -> None:
    if rank == 1:
        exists, module._LAG_SECONDS = Path.exists, 0.2
        Path.exists = lambda path: not path.name.startswith(".seen-") and exists(path)


def host_without_address(rank: int, facts: dict[str, str]) -> None:
    socket.gethostname = lambda: f"node{rank}"
    socket.gethostbyname = lambda name: "127.0.1.1" if rank == 1 else "10.0.0.7"


HOST = re.escape(f"({socket.gethostname()})")


@pytest.mark.parametrize(
    ("ranks", "change", "says"),
    [
        (3, other_dataset, rf"Rank 0 {HOST} has another dataset \(d2, the others d1\): start all"),
        (
            3,
            other_settings_and_dataset,
            r"Rank 1 .* another settings \(s2, .*\) and another dataset \(d2, the others d1\)",
        ),
        (3, each_its_own_dataset, r"Ranks 1-2 .* have another dataset \(2 kinds, the others d0\)"),
        (3, other_torch, r"Rank 2 .* another torch \(2\.12\.0, the others "),
        (2, other_code, r"Rank 1 .* another code \(0\.0\.9, the others "),
        (2, slow_clock, rf"The clock of rank 1 {HOST} is 60 s behind that of rank 0 {HOST}: set it by NTP"),
        (2, fast_clock, r"The clock of rank 1 .* is 60 s ahead of that of rank 0"),
        (3, wrong_clock_of_rank_0, r"The clock of ranks 1-2 .* is 60 s ahead of that of rank 0"),
        (2, host_without_address, r"The name of the host of rank 1 .node1. leads to no address that other hosts"),
        (3, folder_of_its_own, rf"/.* on rank 1 {HOST} is not the folder of rank 0 {HOST}, so that no checkpoint"),
    ],
)
def test_a_rank_that_differs_is_named_on_every_rank(ranks: int, change: Callable, says: str, tmp_path: Path) -> None:
    told = answers(ranks, tmp_path, change)
    assert set(told) == {told[0]}
    assert re.match(f"refused: {says}", told[0]), told[0]
    assert list(tmp_path.iterdir()) == []


def test_ranks_need_no_common_folder_for_checkpoints_elsewhere(tmp_path: Path) -> None:
    told = answers(2, tmp_path, folder_of_its_own, checkpoint_bytes=0)
    assert all(line.startswith("2 rank(s) agree on ") for line in told), told


def test_two_checkpoints_must_fit_on_the_disk_of_rank_0(tmp_path: Path) -> None:
    for told in answers(2, tmp_path, as_they_are, checkpoint_bytes=1 << 60):
        assert re.fullmatch(rf"refused: {tmp_path} has .* free, two checkpoints need 2147483648.0 GiB; .*", told)


@pytest.mark.parametrize(("workers", "warns"), [(8, True), (0, False)])
def test_shared_memory_that_workers_lack_is_a_warning(
    workers: int, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    small = usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small if str(path) == "/dev/shm" else usage(path))
    (told,) = answers(1, tmp_path, as_they_are, workers=workers)
    assert ("WARNING: /dev/shm has 3 MiB free for rank 0 " in told) is warns


def test_many_ranks_are_named_in_spans() -> None:
    reports = [module.Report(f"node{rank // 8}", {}, 0.0, 0, 0, True, False) for rank in range(800)]
    assert module._named([*range(8, 16), 24], reports) == "ranks 8-15 and 24 (node1, node3)"
    assert module._named(range(1, 800, 2), reports) == (
        "ranks 1, 3, 5, 7, 9, 11, 13, 15 and 392 more (node0, node1, node2, ...)"
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    git(tmp_path, "init", "--quiet", "--initial-branch", "topic/main", str(root))
    git(root, "commit", "--quiet", "--allow-empty", "-m", "first")
    return root


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **who}
    return subprocess.run(
        ["git", *words], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_read_as_git_reads_it(repository: Path, tmp_path: Path) -> None:
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD") != ""
    git(repository, "pack-refs", "--all")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD")
    git(repository, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    git(tmp_path / "side", "commit", "--quiet", "--allow-empty", "-m", "second")
    second = git(tmp_path / "side", "rev-parse", "HEAD")
    assert git_commit(tmp_path / "side") == second != git_commit(repository)
    git(repository, "checkout", "--quiet", "--detach", second)
    assert git_commit(repository) == second
    assert git_commit(tmp_path) == ""
    (repository / ".git/HEAD").write_bytes(b"\xff\xff")
    assert git_commit(repository) == ""


def test_code_is_told_apart_before_it_is_committed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "part").mkdir(parents=True)
    (package / "part/a.py").write_text("x = 1\n")
    before = source_hash(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__/a.pyc").write_text("of no matter")
    assert source_hash(package) == before
    (package / "part/a.py").write_text("x = 2\n")
    edited = source_hash(package)
    (package / "part/a.py").rename(package / "part/b.py")
    assert len({before, edited, source_hash(package)}) == 3
    assert source_hash(package)[:12] in code_version(package)
