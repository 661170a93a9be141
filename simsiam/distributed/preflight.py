"""What must hold before the first step, compared over all ranks in seconds; a sentence names the ranks that differ."""

import hashlib
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
import torch.distributed as dist

import simsiam
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError

_MOST_SKEW_SECONDS = 5.0  # a third of what lets torchrun's rendezvous take a node for dead
_LEAST_SHARED_BYTES = 64 << 20
_SHARED_MEMORY = Path("/dev/shm")
_LAG_SECONDS = 5.0  # in which a network's disk shows on one machine what another has made
_PACKAGE = Path(simsiam.__file__).parent


class Report(NamedTuple):
    """What a rank knows of itself.

    Attributes:
        facts: what must be equal on all ranks, by name.
        clock: seconds since 1970, right after a barrier.
        free_bytes: of the disk under the folder, on rank 0; shared_bytes: of shared memory, -1 where there is none.
        sees_folder: whether the folder of rank 0 is this rank's too.
        unreachable: whether gloo would tell the others an address of this host that they cannot reach.
    """

    host: str
    facts: dict[str, str]
    clock: float
    free_bytes: int
    shared_bytes: int
    sees_folder: bool
    unreachable: bool


def preflight(
    runtime: Runtime,
    facts: dict[str, str],
    *,
    folder: Path,
    checkpoint_bytes: int,
    workers: int = 0,
) -> str:
    """Compares the ranks and looks at disk, clocks and network. Every rank must call it.

    Args:
        facts: what must be equal on all ranks besides code and torch, by name, such as `settings` and `dataset`.
        folder: where the checkpoints are; it is there.
        checkpoint_bytes: size of a checkpoint in that folder; 0 where they are kept at a URL.
        workers: loader processes of a rank, which hand over batches in shared memory.

    Returns:
        One line for the banner, with a warning where shared memory is short.

    Raises:
        UserError: what must be equal is not, a clock is off by more than 5 s, not all see the same folder, a host is
            known to itself by no address for others, or two checkpoints do not fit. It is the same on every rank.
    """
    facts = {"code": code_version(), "torch": torch.__version__, **facts}
    free, shared = _free_bytes(folder) if runtime.is_main else 0, _free_bytes(_SHARED_MEMORY)
    sees_folder = _sees_folder(runtime, folder) if checkpoint_bytes else True
    runtime.barrier()
    mine = Report(socket.gethostname(), facts, time.time(), free, shared, sees_folder, _is_unreachable(runtime))
    reports = _gather(runtime, mine)

    skew = [report.clock - reports[0].clock for report in reports]
    mistakes = [*_other_facts(reports), *_wrong_clocks(reports, skew), *_other_folders(reports, folder)]
    mistakes += _without_address(reports)
    if mistakes:
        raise UserError(_sentence(mistakes))
    free, needed = reports[0].free_bytes, 2 * checkpoint_bytes
    if needed and free < needed:
        raise UserError(
            f"{folder} has {_size(free)} free, two checkpoints need {_size(needed)}; make room or give another --out"
        )
    said = [f"{len(reports)} rank(s) agree on {', '.join(facts)}"]
    if runtime.world_size > 1:
        rate = all_reduce_bytes_per_second(runtime)
        said += [f"clocks within {max(skew) - min(skew):.1f} s", f"all-reduce {rate / 1e9:.2f} GB/s"]
    said.append(f"{_size(free)} free")
    short = [rank for rank, report in enumerate(reports) if 0 <= report.shared_bytes < _LEAST_SHARED_BYTES]
    if workers and short:
        least = min(reports[rank].shared_bytes for rank in short)
        said.append(
            f"WARNING: /dev/shm has {_size(least)} free for {_named(short, reports)}, too little for loader workers; "
            "enlarge it (docker run --shm-size) or take --workers 0"
        )
    return ", ".join(said)


def code_version(package: Path = _PACKAGE) -> str:
    """Version, hash of the package's source files, and commit where the package lies in a repository of its own."""
    commit = git_commit(package.parent)
    return f"{simsiam.__version__} {source_hash(package)[:12]}" + (f" (commit {commit[:12]})" if commit else "")


def source_hash(package: Path = _PACKAGE) -> str:
    """SHA-256, in hex, of the names and contents of a package's Python files: also what no commit holds yet."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        for part in (os.fsencode(path.relative_to(package)), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def git_commit(root: Path) -> str:
    """The commit that is checked out in `root`, in hex; empty where it is no repository or one that reads otherwise.

    Reads two or three small files, as a thousand ranks may do at once; git itself takes longer and may not be there.
    """
    with suppress(OSError, ValueError):
        git = root / ".git"
        if git.is_file():  # of a worktree or a submodule: gitdir: PATH
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        for place in (git, common):
            if (place / name).is_file():
                return (place / name).read_text().strip()
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
    return ""


def all_reduce_bytes_per_second(runtime: Runtime, megabytes: int = 16, rounds: int = 3) -> float:
    """What a rank sends and receives, each, while it sums float32 over all ranks; the best of some rounds.

    A ring moves 2 (W - 1) / W of the tensor through each of W ranks, whatever the algorithm in use does.
    """
    sums, best = torch.zeros(megabytes << 18, device=runtime.device), float("inf")
    for _ in range(rounds + 1):  # the first makes connections, and is the slowest
        runtime.barrier()
        began = time.perf_counter()
        dist.all_reduce(sums)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        best = min(best, time.perf_counter() - began)
    return 2 * (runtime.world_size - 1) / runtime.world_size * (megabytes << 20) / best


def _gather(runtime: Runtime, report: Report) -> list[Report]:
    if runtime.world_size == 1:
        return [report]
    reports: list[Report] = [report] * runtime.world_size
    dist.all_gather_object(reports, report)  # with NCCL on this rank's current device, which `running` has set
    return reports


def _other_facts(reports: Sequence[Report]) -> list[str]:
    """What to say of ranks that differ from the most in some fact."""
    differ: dict[tuple[int, ...], list[str]] = {}
    for fact in reports[0].facts:
        values = [report.facts.get(fact, "none") for report in reports]
        usual = Counter(values).most_common(1)[0][0]  # of equals that of the lowest rank
        ranks = tuple(rank for rank, value in enumerate(values) if value != usual)
        if ranks:
            others = {values[rank] for rank in ranks}
            theirs = others.pop() if len(others) == 1 else f"{len(others)} kinds"
            differ.setdefault(ranks, []).append(f"{fact} ({theirs}, the others {usual})")
    return [
        f"{_named(ranks, reports)} {'has' if len(ranks) == 1 else 'have'} another {' and another '.join(facts)}: start "
        "all with the same code, command and data"
        for ranks, facts in differ.items()
    ]


def _wrong_clocks(reports: Sequence[Report], skew: Sequence[float]) -> list[str]:
    """What to say of clocks that are off by more than 5 s from rank 0's."""
    mistakes = []
    for side, sign in (("behind", -1), ("ahead of", 1)):
        ranks = [rank for rank, seconds in enumerate(skew) if sign * seconds > _MOST_SKEW_SECONDS]
        if ranks:
            most = max(abs(skew[rank]) for rank in ranks)
            mistakes.append(
                f"the clock of {_named(ranks, reports)} is {most:.0f} s {side} that of rank 0 ({reports[0].host}): set "
                "it by NTP, since torchrun leaves a slow node out without a word"
            )
    return mistakes


def _sees_folder(runtime: Runtime, folder: Path) -> bool:
    """Whether a file that rank 0 makes in the folder is seen by this rank. Every rank must call it."""
    if runtime.world_size == 1:
        return True
    token = runtime.on_main(lambda: _make_token(folder))
    until = time.monotonic() + _LAG_SECONDS
    while not (sees := token.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    runtime.barrier()
    if runtime.is_main:
        token.unlink(missing_ok=True)
    return sees


def _make_token(folder: Path) -> Path:
    token = folder / f".seen-{uuid4().hex}"
    try:
        token.touch()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give an --out that you may write to") from None
    return token


def _other_folders(reports: Sequence[Report], folder: Path) -> list[str]:
    """What to say of ranks whose part of each checkpoint would be missing where rank 0 completes and resumes it."""
    ranks = [rank for rank, report in enumerate(reports) if not report.sees_folder]
    if not ranks:
        return []
    return [
        f"{folder} on {_named(ranks, reports)} is not the folder of rank 0 ({reports[0].host}), so that no checkpoint "
        "would be whole: give an --out on a disk that all nodes share, or a --checkpoint.folder at a URL"
    ]


def _is_unreachable(runtime: Runtime) -> bool:
    """Whether this host's name means the host itself alone, and gloo was not told which interface to take."""
    if runtime.world_size == 1 or os.environ.get("GLOO_SOCKET_IFNAME"):
        return False
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return True  # gloo falls back to the loopback address


def _without_address(reports: Sequence[Report]) -> list[str]:
    """What to say of ranks that the others could not reach by gloo, which saves and agreements go through."""
    ranks = [rank for rank, report in enumerate(reports) if report.unreachable]
    if not ranks or len({report.host for report in reports}) == 1:
        return []
    return [
        f"the name of the host of {_named(ranks, reports)} leads to no address that other hosts can reach: give it one "
        "in /etc/hosts or DNS, or name its network interface in GLOO_SOCKET_IFNAME"
    ]


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _named(ranks: Iterable[int], reports: Sequence[Report]) -> str:
    """`rank 3 (node1)`, `ranks 0-7 and 12 (node1, node2)`; of many the first."""
    ranks = list(ranks)
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    hosts = list(dict.fromkeys(reports[rank].host for rank in ranks))
    spans = [*spans[:8], f"{len(spans) - 8} more"] if len(spans) > 9 else spans
    hosts = [*hosts[:3], "..."] if len(hosts) > 4 else hosts
    listed = ", ".join(spans[:-1]) + f" and {spans[-1]}" if len(spans) > 1 else spans[0]
    return f"rank{'s' if len(ranks) > 1 else ''} {listed} ({', '.join(hosts)})"


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return -1


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size, 0) / 2**20:.0f} MiB"
