"""pretrain.py with a fault inside: FAULT in the environment says which, once.

FAULT is JSON: {"kind", "rank", "point", "step", "once", "after"}. `point` is a place in the run that `arm` knows,
`step` the number of steps done when it strikes, `once` a file that is made when it has struck: what starts again is
spared. `after` is how many seconds later it strikes, at once where it is left out.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import pretrain

FAULT: dict[str, Any] = {}
steps_done = 0
states: list[Any] = []
fillers: list[Path] = []


def strike() -> None:
    """Does what FAULT says, if this is the rank, the step and the first time."""
    here, struck = int(os.environ.get("RANK", 0)) in FAULT["rank"], Path(FAULT["once"])
    if not here or steps_done < FAULT["step"] or struck.exists():
        return
    struck.touch()
    time.sleep(FAULT.get("after", 0))
    KINDS[FAULT["kind"]]()


def before(owner: Any, name: str) -> None:
    """Has `strike` come before a function of a module or class."""
    plain = getattr(owner, name)

    def struck(*arguments: Any, **named: Any) -> Any:
        strike()
        return plain(*arguments, **named)

    setattr(owner, name, struck)


def after(owner: Any, name: str) -> None:
    plain = getattr(owner, name)

    def struck(*arguments: Any, **named: Any) -> Any:
        answer = plain(*arguments, **named)
        strike()
        return answer

    setattr(owner, name, struck)


def spoil_a_gradient() -> None:
    next(iter(states[-1].module.parameters())).register_hook(lambda grad: grad * torch.nan)


def spoil_the_loss() -> None:
    state = states[-1]
    plain = state.module.forward

    def forward(*inputs: Any) -> Any:
        output = plain(*inputs)
        return output._replace(loss=output.loss * float("inf"))

    state.module.forward = forward


def flip_a_bit() -> None:
    next(iter(states[-1].module.parameters())).data.view(torch.int32)[0, 0, 0, 0] ^= 1 << 3


def hold() -> None:
    """Stands here until the test, which sees `once`, has done something from outside and says so by another file."""
    while not Path(f"{FAULT['once']}.go").exists():
        time.sleep(0.005)


def hold_the_lock() -> None:
    ctypes.PyDLL(None).sleep(600)  # unlike a CDLL it keeps Python's lock: no other thread runs


def run_out_of_memory() -> None:
    """Takes all that this process may have, which then is 1 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    bytearray(1 << 30)


def fill_the_disk() -> None:
    """Takes all room that there is beside the run folder's files, until FAULT's `until` is told."""
    filler = Path(sys.argv[-1]) / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    fillers.append(filler)


def make_room() -> None:
    if fillers and FAULT["until"] in Path("/proc/self/fd/2").read_text():
        fillers.pop().unlink()


def fail(error: BaseException) -> None:
    raise error


KINDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segfault": lambda: ctypes.memset(8, 0, 8),
    "abort": os.abort,
    "lock held": hold_the_lock,
    "memory": run_out_of_memory,
    "hold": hold,
    "disk full": fill_the_disk,
    "exception": lambda: fail(RuntimeError("on purpose")),
    "no space": lambda: fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "nan-gradient": spoil_a_gradient,
    "inf-loss": spoil_the_loss,
    "flip": flip_a_bit,
}


def arm() -> None:
    """Puts the fault in its place, and counts steps."""
    from simsiam.checkpoint import manager
    from simsiam.data.loaders.torchvision import _CropTasks
    from simsiam.evaluation.monitor import KnnMonitor
    from simsiam.training import build, finite, keeper

    plain_build, plain_stepped = build.build_state, keeper.Keeper.stepped

    def build_state(*arguments: Any, **named: Any) -> Any:
        states.append(plain_build(*arguments, **named))
        if FAULT["point"] == "forward":
            before(states[-1].module, "forward")
        if FAULT["point"] == "optimiser":
            before(states[-1].optimizer, "step")
        return states[-1]

    def stepped(self: Any, result: Any) -> Any:
        global steps_done
        steps_done = self._state.step
        make_room()
        return plain_stepped(self, result)

    plain_task = _CropTasks.__getitem__

    def of_a_worker(self: Any, task: int) -> Any:
        global steps_done
        steps_done = task  # a process of its own, which sees no steps
        strike()
        return plain_task(self, task)

    def in_a_worker() -> None:
        _CropTasks.__getitem__ = of_a_worker

    build.build_state, keeper.Keeper.stepped = build_state, stepped
    points: dict[str, Callable[[], None]] = {
        "load": lambda: after(manager.dcp, "load"),
        "start": lambda: before(keeper.Keeper, "__enter__"),
        "forward": lambda: None,
        "optimiser": lambda: None,
        "evaluation": lambda: before(KnnMonitor, "accuracy"),
        "worker": in_a_worker,
        "copy": lambda: before(manager.Staging, "copy"),
        "before rename": lambda: before(manager.os, "rename"),
        "all-reduce": lambda: before(finite, "add_up"),
        "write": lambda: before(manager.dcp.FileSystemWriter, "write_data"),
        "shard": lambda: before(manager.dcp, "save"),
        "after rename": lambda: after(manager.os, "rename"),
        "before latest": lambda: before(manager, "write_atomically"),
        "delete": lambda: before(manager.shutil, "rmtree"),
        "step": lambda: after(keeper.Keeper, "stepped"),
    }
    points[FAULT["point"]]()


def main() -> None:
    """Runs pretrain.py with the fault."""
    FAULT.update(json.loads(os.environ.get("FAULT", "null")) or {})
    if FAULT:
        arm()
    pretrain.main()


if __name__ == "__main__":
    main()
