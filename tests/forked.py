"""Scripts on one or more ranks, forked from the test: a start takes a second and not ten."""

import atexit
import faulthandler
import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

# What is imported before a fork the ranks need not import.
import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
import torch
import torch.distributed.checkpoint
import torchvision  # noqa: F401

import simsiam.evaluation.monitor
import simsiam.methods.registry
import simsiam.methods.simsiam
import simsiam.run.board
import simsiam.training.keeper  # noqa: F401
from tests.processes import free_port

ROOT = Path(__file__).parents[1]


def fork(
    ranks: int,
    argv: Sequence[object],
    stdout: Path | int,
    stderr: Path,
    main: Callable[[], None] | None = None,
    **environment: str,
) -> list[BaseProcess]:
    """Starts a script of the project, `argv[0]`, on so many ranks with torchrun's variables.

    Args:
        stdout, stderr: files that are appended to, or a descriptor.
        main: what is called in the place of the script's own.
    """
    words = [str(word) for word in argv]
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, words, stdout, stderr, main, environment)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _rank(
    rank: int,
    argv: list[str],
    stdout: Path | int,
    stderr: Path,
    main: Callable[[], None] | None,
    environment: Mapping[str, str],
) -> NoReturn:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    for name in ("DATA", "LOG"):
        os.environ.pop(name, None)
    for place, descriptor in ((stdout, 1), (stderr, 2)):
        opened = place if isinstance(place, int) else os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = argv
    faulthandler.disable()  # pytest has it enabled, and would have each crash written to the screen
    atexit._clear()  # what the test's own process would do at its end
    code = 0
    try:
        (main or importlib.import_module(argv[0].removesuffix(".py").replace("/", ".")).main)()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
