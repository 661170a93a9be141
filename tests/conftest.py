"""What tests share: the entry points as a user starts them."""

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no GPU unless `-m gpu` asks for those that need one: ranks outnumber a machine's GPUs in many."""
    on_gpu = re.search(r"(?<!not )\bgpu\b", config.option.markexpr or "")
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A shell has what it starts with `&` ignore Ctrl-C, and nohup the terminal's end; so would all that tests start.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    alone = not worker and not getattr(config.option, "numprocesses", None)
    if hasattr(os, "sched_setaffinity") and (worker or alone) and not on_gpu:
        # A core for each worker and what it starts: threads that outnumber cores wait for each other at every barrier,
        # and a process that has computed on several threads cannot be forked: its copy waits for those it lacks.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw") or 0) % len(cores)]})
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` reads the tests of tests/gpu alone, which need none of the packages that others do."""
    elsewhere = collection_path.is_file() and collection_path.parent != ROOT / "tests/gpu"
    return True if elsewhere and config.option.markexpr == "gpu" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long tests of faults to `-m faults`. An `-m` in the options would give way to any other one."""
    if "faults" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("faults")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.fixture
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """`launch("pretrain.py", *arguments, ranks=2)` runs a script to its end, under torchrun where there are ranks."""

    def run(
        script: str, *arguments: object, ranks: int = 1, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess:
        command = command_line(script, *arguments, ranks=ranks)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**clean_environment(), **env},
            text=True,
            capture_output=True,
            timeout=900,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """As `launch`, but forked from the test: it takes a second and not ten. The code is that of the first to fail."""

    def run(script: str, *arguments: object, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess:
        from tests.forked import fork

        said = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]
        processes = fork(ranks, [script, *arguments], *said)
        for process in processes:
            process.join(900)
            process.kill()
        code = next((process.exitcode for process in processes if process.exitcode), 0)
        out, err = (path.read_text() for path in said)
        assert not check or code == 0, out + err
        return subprocess.CompletedProcess([script, *arguments], code, out, err)

    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`call("lincls.py", *arguments)` runs a script's main in this process and gives its exit code: no start-up."""

    def run(script: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
        except SystemExit as stop:
            return stop.code
        return 0

    threads = torch.get_num_threads()
    for name in ("DATA", "LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(ROOT)
    yield run
    torch.set_num_threads(threads)


def command_line(script: str, *arguments: object, ranks: int = 1) -> list[str]:
    """The words of a command; plain python for one rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *torchrun, script, *map(str, arguments)]


def clean_environment() -> dict[str, str]:
    """The environment without the variables that the trainer reads."""
    return {**{k: v for k, v in os.environ.items() if k not in ("DATA", "LOG")}, "OMP_NUM_THREADS": "1"}
