"""Seconds from launch to the end of the first step, by what they go to.

    python benchmarks/startup.py [--ranks 1,2] [--recipe quickstart] [--rounds 3]

A run of pretrain.py, its data decoded and indexed before, by turns with processes that import torch and torchvision
alone. A part's seconds are without those of a part within it: imports, wherever they come, are a part of their own.
Of several ranks they are rank 0's.
"""

import argparse
import builtins
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
TORCH = "import torch, torchvision"
IMPORTS = ("import torch", TORCH)
PARTS = {
    "simsiam.settings.parse:parse": "settings",
    "simsiam.distributed.runtime:fresh_store": "ranks meet",
    "torch.distributed:init_process_group": "ranks meet",
    "simsiam.data.open:open_images": "data",
    "simsiam.data.loaders:choose_images": "data",
    "simsiam.data.loaders:make_loader": "data",
    "simsiam.methods.registry:build_method": "network",
    "simsiam.training.build:build_state": "network",
    "simsiam.run.start:check_start": "preflight",
    "simsiam.evaluation.monitor:KnnMonitor.accuracy": "kNN of the random encoder",
    "simsiam.training.step:train_step": "first step",
}
LAUNCH, IMPORT, REST = "launch", "imports", "the rest"
Parts = dict[str, float]


class Stopwatch:
    """Seconds by part, of which one is on at a time: a part within another interrupts it."""

    def __init__(self, now: float) -> None:
        self.seconds: Parts = {}
        self._on, self._since = [REST], now

    def _take(self) -> None:
        now = time.time()
        self.seconds[self._on[-1]] = self.seconds.get(self._on[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._take()
        self._on.append(name)
        try:
            yield
        finally:
            self._take()
            self._on.pop()

    def imports(self) -> bool:
        return self._on[-1] == IMPORT


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank(*sys.argv[2:5], sys.argv[5:])
        return
    from benchmarks.report import Report, parser, ratios, spread

    options = parser(__doc__, rounds=3)
    options.add_argument("--ranks", default="1,2")
    options.add_argument("--recipe", default="quickstart")
    options.add_argument("--data", default="", help="in place of the recipe's")
    arguments = options.parse_args()
    numbers = [int(number) for number in arguments.ranks.split(",")]
    launch(1, arguments)  # what is drawn, decoded and indexed on first use is kept
    alone: dict[str, list[float]] = {name: [] for name in IMPORTS}
    runs: dict[int, list[Parts]] = {number: [] for number in numbers}
    for _ in range(arguments.rounds):
        for code in IMPORTS:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            alone[code].append(time.perf_counter() - began)
        for number in numbers:
            runs[number].append(launch(number, arguments))
    import torch

    with Report(f"From launch to the first step: {arguments.recipe}", arguments, torch.device("cpu")) as report:
        names = list(dict.fromkeys([LAUNCH, IMPORT, *PARTS.values(), REST]))
        rows = [
            (name, *(f"{statistics.median(run.get(name, 0.0) for run in runs[number]):.2f}" for number in numbers))
            for name in names
        ]
        sums = [spread([sum(run.values()) for run in runs[number]]) for number in numbers]
        report.table(("seconds, medians", *(f"{number} rank(s)" for number in numbers)), [*rows, ("all", *sums)])
        report.table(("a process of its own", "s"), [(name, spread(taken)) for name, taken in alone.items()])
        for number in numbers:
            over = ratios([sum(run.values()) for run in runs[number]], alone[TORCH])
            report.ratio(f"first step on {number} rank(s) over importing torch and torchvision", over)


def launch(ranks: int, arguments: argparse.Namespace) -> Parts:
    """Seconds of the parts of one start."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "parts.json"
        words = ["--recipe", arguments.recipe, *(["--data", arguments.data] if arguments.data else [])]
        words += ["--max-steps", "1", "--hide-progress", "--out", f"{folder}/run", "--resume", "never"]
        command = [sys.executable, *torchrun, __file__, "--rank", str(ROOT), str(out), str(time.time()), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"pretrain.py {' '.join(words)} failed:\n{done.stderr}")
        return json.loads(out.read_text())


def rank(root: str, out: str, launched: str, words: list[str]) -> None:
    """One rank of a run: pretrain.py with a stopwatch, which rank 0 writes down at the end of the first step."""
    watch = Stopwatch(time.time())
    watch.seconds[LAUNCH] = time.time() - float(launched)

    def finished() -> None:
        if int(os.environ.get("RANK", 0)) == 0 and not Path(out).exists():
            Path(out).write_text(json.dumps(watch.seconds))

    _watch_imports(watch, finished)
    sys.path.insert(0, root)
    import simsiam.settings.parse  # noqa: F401  (so that pretrain gets it with its stopwatch)

    sys.argv = ["pretrain.py", *words]
    import pretrain

    pretrain.main()


def _watch_imports(watch: Stopwatch, finished: Callable[[], None]) -> None:
    """Times every import, and after it every function of PARTS that has come with it."""
    plain, waiting = builtins.__import__, dict(PARTS)

    def timed_import(name: str, *given: Any, **named: Any) -> Any:
        if watch.imports():
            return plain(name, *given, **named)
        with watch.part(IMPORT):
            module = plain(name, *given, **named)
            for place in [place for place in waiting if place.partition(":")[0] in sys.modules]:
                if _wrap(place, watch, finished):
                    del waiting[place]
        return module

    builtins.__import__ = timed_import


def _wrap(place: str, watch: Stopwatch, finished: Callable[[], None]) -> bool:
    """Puts a function with a stopwatch in a function's place; False where the module is not that far."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    holder: Any = sys.modules[module]
    for owner in owners:
        holder = getattr(holder, owner, None)
    plain = getattr(holder, name, None)
    if plain is None:
        return False

    def timed(*given: Any, **named: Any) -> Any:
        with watch.part(PARTS[place]):
            answer = plain(*given, **named)
        if PARTS[place] == "first step":
            finished()
        return answer

    setattr(holder, name, timed)
    return True


if __name__ == "__main__":
    main()
