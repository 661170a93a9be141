"""The training scripts, run from a command as a user would type them."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import simsiam
from simsiam.errors import Preempted, UserError


def add_settings(parser: argparse.ArgumentParser, what: str) -> None:
    """The option `--settings`, which takes the rest of the line for a script; `what` says for which, and an example."""
    parser.add_argument(
        "--settings", nargs=argparse.REMAINDER, default=[], metavar="SETTING", help=f"the rest of the line, {what}"
    )


def run_script(script: str, *arguments: object, ranks: int = 1) -> None:
    """Shows and runs `lincls.py`, `simsiam` or another script to its end, under torchrun where there are several ranks.

    Raises UserError where it fails, which has said why, and Preempted where it was asked to end and has saved.
    """
    words = [str(word) for word in arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    if script == "simsiam":
        program = ["-m", "simsiam"]
    else:
        path = Path(simsiam.__file__).parents[1] / script
        if not path.is_file():
            raise UserError(f"{script} is not beside the package, {path.parent}; run this from a clone of the project")
        program = [str(path)]
    shown = shlex.join([*(["torchrun", *torchrun[2:]] if torchrun else ["python"]), *program[:-1], script, *words])
    print(f"\n$ {shown}", flush=True)
    if subprocess.run([sys.executable, *torchrun, *program, *words], check=False).returncode:
        raise UserError(f"`{shown}` failed; what it printed above says why")
    out = words[words.index("--out") + 1] if "--out" in words else ""
    if out and (Path(out) / "preempted").exists():
        raise Preempted(f"`{shown}` was asked to end; the same command goes on with it")
