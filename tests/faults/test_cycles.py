"""A run that is killed again and again, wherever it happens to be, ends as the undisturbed one does, to the bit."""

import gc
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.faults.harness import checkpoint, digest, kill, left_behind, run, start, wait, wait_for

# Saves every other step, so that kills meet every part of a save.
OFTEN = ("--checkpoint.every_steps", 2)
ENDLESS = ("--max-steps", 1_000_000)
ON_ANY_RANK = ("forward", "all-reduce", "optimiser", "step", "copy", "shard")
ON_RANK_0 = ("before rename", "after rename", "before latest", "delete")
LONG = 500 if os.environ.get("RELEASE") else 200


def test_14_kills_in_a_row_lose_nothing(tmp_path: Path) -> None:
    cycles(tmp_path, 14, random.Random(1))


@pytest.mark.faults
@pytest.mark.timeout(3 * 3600)
def test_hundreds_of_kills_in_a_row_lose_nothing(tmp_path: Path) -> None:
    cycles(tmp_path, LONG, random.Random(2))


def cycles(folder: Path, times: int, draw: random.Random) -> None:
    """Kills a run so many times, lets it go on to an end, and compares it; and what that has cost this process."""
    out, costs = folder / "run", []
    for cycle in range(times):
        if draw.random() < 0.7:
            killed_at_a_point(out, folder / f"struck-{cycle}", draw)
        else:
            killed_from_outside(out, draw)
        gc.collect()
        costs.append(costs_of_this_process())
    last = newest(out) + 3
    assert run(2, out, *OFTEN, "--max-steps", last) == [0, 0]
    assert left_behind(out) == []

    assert run(2, folder / "undisturbed", *OFTEN, "--max-steps", last) == [0, 0]
    assert digest(out, last) == digest(folder / "undisturbed", last)

    warm = costs[min(8, times // 2)]
    assert costs[-1]["files"] == warm["files"]
    assert costs[-1]["threads"] == warm["threads"]
    assert costs[-1]["bytes"] - warm["bytes"] < 16 << 20


def killed_at_a_point(out: Path, once: Path, draw: random.Random) -> None:
    """A rank, or both, that kill themselves at a place in the code some steps after they went on."""
    ranks = draw.choice([[0], [1], [0, 1]])
    point = draw.choice(ON_ANY_RANK + ON_RANK_0 if 0 in ranks else ON_ANY_RANK)
    step = newest(out) + draw.randint(0, 4)
    fault = {"kind": "kill", "point": point, "step": step, "rank": ranks, "once": str(once)}
    processes = start(2, out, *OFTEN, *ENDLESS, fault=fault)
    codes = wait(processes)
    assert once.exists(), f"{fault} did not strike: {codes}"
    assert -signal.SIGKILL in [codes[rank] for rank in ranks], f"{fault}: {codes}"
    check_clean(processes, codes)


def killed_from_outside(out: Path, draw: random.Random) -> None:
    """A rank, or both, killed at any moment once they have stepped; or, while they start, both one after the other.

    A rank whose peer dies before it comes to the store waits for it for minutes: to end it then is torchrun's part.
    """
    starting = draw.random() < 0.5
    victims = draw.sample([0, 1], 2 if starting else draw.choice([1, 2]))
    before = newest(out)
    processes = start(2, out, *OFTEN, *ENDLESS)
    if not starting:
        wait_for(checkpoint(out, before + 2) / "manifest.json", processes, 300)
    time.sleep(draw.uniform(0, 1))
    for rank in victims:
        assert processes[rank].is_alive() or len(victims) == 2, "ended before it was killed"
        kill([processes[rank]])
        time.sleep(draw.uniform(0, 0.05))
    codes = wait(processes)
    assert codes[victims[0]] == -signal.SIGKILL
    check_clean(processes, codes)


def check_clean(processes: list, codes: list[int]) -> None:
    """All ranks have failed, and nothing of theirs is in shared memory."""
    assert 0 not in codes
    pids = {str(process.pid) for process in processes}
    assert not [path.name for path in Path("/dev/shm").iterdir() if pids & set(path.name.split("_"))]


def newest(out: Path) -> int:
    """Step of the newest checkpoint that is complete; 0 where there is none."""
    return max((int(path.parent.name[5:]) for path in out.glob("checkpoints/step_*/manifest.json")), default=0)


def costs_of_this_process() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
