"""Markdown of a measurement: device, versions, commit and command, tables, and ratios beside their goals.

    python benchmarks/report.py FILE        the ratios of all that was appended to a file, as one table

Every script here takes `--append`, which adds what it prints to benchmarks/RESULTS.md, or `--append FILE`.
"""

import argparse
import math
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from simsiam.distributed.preflight import code_version
from simsiam.distributed.threads import usable_cores

ROOT = Path(__file__).resolve().parents[1]
_RATIOS = "| ratio | measured | goal | met |"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{_RATIOS}\n|---|---|---|---|")
    among = False
    file = Path(sys.argv[1])
    if not file.exists():
        sys.exit(f"{file} is not there: no benchmark came to its end, or none was told --append {file}")
    for line in file.read_text().splitlines():
        if among and line.startswith("| "):
            print(line)
        among = line == _RATIOS or (among and line.startswith("|"))


def parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The options that all have; `doc` is the script's own description."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="turns of each side (default %(default)s)")
    made.add_argument("--append", type=Path, nargs="?", const=ROOT / "benchmarks/RESULTS.md", help="to this file too")
    return made


def turns_parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The same for those that measure by turns."""
    made = parser(doc, rounds)
    made.add_argument("--seconds", type=float, default=math.inf, help="begin no round after the first that ends later")
    return made


class Report:
    """Prints as it goes; at its end prints the ratios, and appends all of it where that is asked for."""

    def __init__(self, title: str, arguments: argparse.Namespace, device: torch.device) -> None:
        self._append, self._lines, self._ratios = arguments.append, [], []
        self.say(f"\n## {title}\n")
        self.say(f"{describe(device)}; {code_version(ROOT / 'simsiam')}. `{_command()}`\n")

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            return
        if self._ratios:
            self.say(f"{_RATIOS}\n|---|---|---|---|")
            for ratio in self._ratios:
                self.say(ratio)
        if self._append:
            with self._append.open("a") as file:
                file.write("\n".join(self._lines) + "\n")

    def say(self, text: str) -> None:
        self._lines.append(text)
        print(text, flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.say("\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)) + "\n")

    def ratio(
        self, what: str, values: float | Sequence[float], *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """A figure, or the figures of some rounds, to stand beside its goal in the last table."""
        values = values if isinstance(values, Sequence) else [values]
        middle = statistics.median(values)
        goal = "" if at_least is None else f"at least {at_least:g}"
        goal = goal if at_most is None else f"at most {at_most:g}"
        is_met = (at_least is None or middle >= at_least) and (at_most is None or middle <= at_most)
        met = ("yes" if is_met else "no") if goal else ""
        told = spread(values) + (f", n = {len(values)}" if len(values) > 1 else "")
        self._ratios.append(f"| {what} | {told} | {goal} | {met} |")


def spread(values: Sequence[float]) -> str:
    """Median, and least to most, with three digits or more."""
    shown = [_digits(value) for value in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One by the other, round by round: a machine that slows down slows both."""
    return [a / b for a, b in zip(over, under, strict=True)]


def describe(device: torch.device) -> str:
    """The device, its threads, and the versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {usable_cores()} cores, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    best = next((flag for flag in ("avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{name} ({best})" if best else name


def _digits(value: float) -> str:
    if value == 0 or not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _command() -> str:
    """The command line without the places of this machine."""
    words = [word for word in sys.argv[1:] if not word.startswith("--append")]
    named = ("PLACE" if "/" in word and Path(word).expanduser().exists() else word for word in words)
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *named])


if __name__ == "__main__":
    main()
