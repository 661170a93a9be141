"""Runs that are killed, stopped and damaged."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from tests.faults import drive
from tests.forked import fork

RUN = (
    "--recipe", "quickstart", "--data", "digits", "--encoder", "resnet8", "--precision", "fp32", "--batch-size", 16,
    "--views.size", 8, "--views.resize", 8, "--method.dim", 16, "--method.projector_hidden", 16,
    "--method.predictor_hidden", 8, "--log-every", 1, "--knn-every", 0, "--hide-progress", "--workers", 0,
    "--checkpoint.every_epochs", 0, "--checkpoint.every_steps", 5, "--max-steps", 60, "--skip-preflight",
)  # fmt: skip
"""Settings of a run whose steps take some 30 ms on a rank."""
STEPS = 16
SHORT = ("--max-steps", STEPS)
"""Of a run that saves at 5, 10, 15 and 16; what `undisturbed` is the digest of, on two ranks."""

Fault = dict[str, Any]


def a_fault(folder: Path, kind: str, point: str, step: int, *ranks: int) -> Fault:
    """A fault of tests/faults/drive.py that strikes once in the runs of `folder`."""
    return {"kind": kind, "point": point, "step": step, "rank": list(ranks), "once": str(folder / f"struck-{kind}")}


def start(
    ranks: int,
    out: Path,
    *arguments: object,
    settings: Sequence[object] = RUN,
    fault: Fault | None = None,
    stdout: int | None = None,
) -> list[BaseProcess]:
    """pretrain.py on so many gloo ranks, which write what they say to OUT.log, or to another descriptor than that."""
    log = Path(f"{out}.log")
    argv = ("pretrain.py", *settings, *arguments, "--out", out)
    return fork(ranks, argv, log if stdout is None else stdout, log, drive.main, FAULT=json.dumps(fault))


def wait(processes: Sequence[BaseProcess], seconds: float = 600) -> list[int]:
    """The exit codes of all, killed where they do not end in time: minus the signal, as Python has it."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    kill(processes)
    assert None not in codes, f"ranks {[r for r, code in enumerate(codes) if code is None]} did not end: {codes}"
    return codes


def run(
    ranks: int, out: Path, *arguments: object, settings: Sequence[object] = RUN, fault: Fault | None = None
) -> list[int]:
    """The exit codes of a run to its end."""
    return wait(start(ranks, out, *arguments, settings=settings, fault=fault))


def check_goes_on(out: Path, undisturbed: str, *arguments: object) -> None:
    """Lets a run of SHORT on two ranks go on to its end, which is that of the undisturbed one, with nothing left."""
    assert run(2, out, *SHORT, *arguments) == [0, 0], said(out)
    assert digest(out, STEPS) == undisturbed
    assert left_behind(out) == []


def kill(processes: Sequence[BaseProcess], number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to those that are alive; after SIGKILL waits for them."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)
    if number == signal.SIGKILL:
        for process in processes:
            process.join()


def wait_for(path: Path, processes: Sequence[BaseProcess], seconds: float = 60) -> None:
    """Until a file is there; fails where the run ends before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert any(process.is_alive() for process in processes), f"ended before {path} came"
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)


def holding(fault: Fault, processes: Sequence[BaseProcess]) -> Path:
    """Waits until a fault of the kind `hold` holds its rank; the file that lets it go on."""
    wait_for(Path(fault["once"]), processes)
    return Path(f"{fault['once']}.go")


def checkpoint(out: Path, step: int = 60) -> Path:
    """Where a run's checkpoint of a step is."""
    return out / f"checkpoints/step_{step:08d}"


def state_at(path: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, by name."""
    reader = dcp.FileSystemReader(path)
    held = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
    }
    dcp.load(held, storage_reader=reader, no_dist=True)
    return held


def digest(out: Path, step: int = 60) -> str:
    """`state_digest` of a run's checkpoint of a step, and every step's loss."""
    losses = logged(out)
    assert sorted(losses) == list(range(1, step + 1)), "a step was not logged, or twice"
    return state_digest(checkpoint(out, step)) + json.dumps(losses)


def state_digest(path: Path) -> str:
    """SHA-256 over all that a checkpoint holds: parameters, buffers, momentum, step."""
    held = state_at(path)
    assert any(key.endswith("momentum_buffer") for key in held)
    sha = hashlib.sha256()
    for key in sorted(held):
        sha.update(key.encode() + held[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def logged(out: Path) -> dict[int, float]:
    """The loss of each step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), "a step was logged twice"
    return {line["step"]: line["loss"] for line in lines}


def said(out: Path) -> str:
    """All that the ranks printed."""
    return Path(f"{out}.log").read_text()


def sentences(out: Path, beginning: str) -> list[str]:
    """The lines that the ranks printed with this beginning, `error: ` or `warning: `."""
    return [line for line in said(out).splitlines() if line.startswith(beginning)]


def left_behind(out: Path) -> list[str]:
    """What a run that is over must not leave: locks, temporary files and folders."""
    patterns = ("run.lock*", ".*.tmp", ".*.part", "checkpoints/.*", ".run.lock*", ".write-test")
    return sorted(str(path.relative_to(out)) for pattern in patterns for path in out.glob(pattern))
