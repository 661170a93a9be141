"""Runs that are killed, stopped and damaged: ranks forked from the test, so that a start takes a second and not ten."""

import atexit
import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Much of this is only for the ranks: what is imported before a fork they need not import, which takes 6 s.
import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
import torch
import torch.distributed.checkpoint as dcp
import torchvision  # noqa: F401

import simsiam.evaluation.monitor
import simsiam.methods.registry
import simsiam.methods.simsiam
import simsiam.run.board
import simsiam.training.keeper  # noqa: F401
from tests.faults import drive

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    places |= {"MASTER_PORT": str(port), "FAULT": json.dumps(fault)}
    argv = ["pretrain.py", *map(str, (*settings, *arguments)), "--out", str(out)]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, places, argv, f"{out}.log", stdout)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


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


def _rank(rank: int, places: dict[str, str], argv: list[str], log: str, stdout: int | None) -> None:
    os.environ.update(places, RANK=str(rank), LOCAL_RANK=str(rank))
    for name in ("DATA", "LOG"):
        os.environ.pop(name, None)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor if stdout is None else stdout, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    sys.argv = argv
    faulthandler.disable()  # pytest has it enabled, and would have each crash written to the screen
    atexit._clear()  # what the test's own process would do at its end
    code = drive.main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
