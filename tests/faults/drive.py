"""pretrain.py with a fault inside: FAULT in the environment says which, once.

FAULT is JSON: {"kind", "rank", "point", "step", "once"}. `point` is a place in the run that `arm` knows, `step` the
number of steps done when it strikes, `once` a file that is made when it has struck: what starts again is spared.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import pretrain

FAULT: dict[str, Any] = {}
steps_done = 0
states: list[Any] = []


def strike() -> None:
    """Does what FAULT says, if this is the rank, the step and the first time."""
    here, struck = int(os.environ.get("RANK", 0)) in FAULT["rank"], Path(FAULT["once"])
    if not here or steps_done < FAULT["step"] or struck.exists():
        return
    struck.touch()
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


KINDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "nan-gradient": spoil_a_gradient,
    "inf-loss": spoil_the_loss,
    "flip": flip_a_bit,
}


def arm() -> None:
    """Puts the fault in its place, and counts steps."""
    from simsiam.checkpoint import manager
    from simsiam.training import build, finite, keeper

    plain_build, plain_stepped = build.build_state, keeper.Keeper.stepped

    def build_state(*arguments: Any, **named: Any) -> Any:
        states.append(plain_build(*arguments, **named))
        return states[-1]

    def stepped(self: Any, result: Any) -> Any:
        global steps_done
        steps_done = self._state.step
        return plain_stepped(self, result)

    build.build_state, keeper.Keeper.stepped = build_state, stepped
    points: dict[str, Callable[[], None]] = {
        "all-reduce": lambda: before(finite, "allreduce_hook"),
        "shard": lambda: before(manager.dcp, "save"),
        "after rename": lambda: after(manager.os, "rename"),
        "before latest": lambda: before(manager, "write_atomically"),
        "delete": lambda: before(manager.shutil, "rmtree"),
        "step": lambda: after(keeper.Keeper, "stepped"),
    }
    points[FAULT["point"]]()


def main() -> int:
    """Runs pretrain.py with the fault; its exit code."""
    FAULT.update(json.loads(os.environ.get("FAULT", "null")) or {})
    if FAULT:
        arm()
    try:
        pretrain.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
