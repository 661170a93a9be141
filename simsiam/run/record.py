"""A run folder read back: what was asked, how it went, what came of it; of a run that is going on or broke off too."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from simsiam.run.folder import STATES
from simsiam.settings.plain_yaml import plain_yaml

CURVES = ("loss", "knn", "top1", "AP50", "AP", "AP75", "mask_AP", "std", "effective_rank", "lr", "pairs_per_second")
"""What is worth a curve; docs/metrics.md defines each."""

_ABSURD = 1e100  # no figure of a run; differences of the largest numbers are no longer finite
_FILES = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Record:
    """One run folder.

    Attributes:
        command: what was typed, as config.yaml's first line has it; empty where it has none.
        config, summary: what the two files hold; empty where they are missing or damaged.
        state: in-progress, completed, failed or preempted; empty where the folder does not say.
        series: (step, value) of each of `CURVES` that the run has, in order of steps.
        words: the newest verdict and reason of metrics.jsonl.
        verdicts: (step, verdict, reason) of the first line that has one, and of each that has another than before.
        steps_per_epoch: 0 where metrics.jsonl does not tell.
    """

    path: Path
    command: str
    config: dict[str, Any]
    summary: dict[str, Any]
    state: str
    series: dict[str, list[tuple[float, float]]]
    words: dict[str, str]
    verdicts: list[tuple[float, str, str]]
    steps_per_epoch: float

    @property
    def kind(self) -> str:
        """`pretraining`, `classification` or `detection`: their curves have nothing to do with each other."""
        if self.config:
            told = {"method": "pretraining", "train_sets": "detection"}
            return next((kind for key, kind in told.items() if key in self.config), "classification")
        told = {"top1": "classification", "AP": "detection"}
        return next((kind for key, kind in told.items() if key in self.series), "pretraining")

    @property
    def recipe(self) -> str:
        """The recipe that the command named, or empty."""
        words = self.command.replace("=", " ").split()
        named = [after for word, after in pairwise(words) if word in ("-c", "--recipe")]
        return Path(named[-1]).name.removesuffix(".yaml") if named else ""

    def figure(self, name: str) -> Any:
        """A final figure of the summary; of a run that has not ended, the newest in metrics.jsonl; else None."""
        if self.state in ("completed", "failed", "preempted") and name in self.summary:
            return self.summary[name]
        if self.series.get(name):
            return self.series[name][-1][1]
        return self.words.get(name)


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a file that only run folders have."""
    return any((path / name).is_file() for name in _FILES)


def read_run(path: Path) -> Record:
    """The run of a folder; what is damaged in it is left out."""
    text = _text(path / "config.yaml")
    summary = _object(_text(path / "summary.json"))
    try:
        config = plain_yaml(text.encode())
    except yaml.YAMLError:
        config = None
    marks = [state for state in STATES if (path / state).exists()]
    series, words, verdicts, steps_per_epoch = _metrics(path / "metrics.jsonl")
    return Record(
        path=path,
        command=text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else "",
        config=config if isinstance(config, dict) else {},
        summary=summary,
        state=marks[0] if marks else str(summary.get("state", "")),
        series=series,
        words=words,
        verdicts=verdicts,
        steps_per_epoch=steps_per_epoch,
    )


def _metrics(
    path: Path,
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str], list[tuple[float, str, str]], float]:
    """Series, the newest words, changes of the verdict, and steps an epoch."""
    series: dict[str, list[tuple[float, float]]] = {}
    words: dict[str, str] = {}
    verdicts: list[tuple[float, str, str]] = []
    steps_per_epoch = 0.0
    for line in map(_object, _text(path).split("\n")):
        step = _number(line.get("step"))
        if step is None:
            continue
        if "lr" not in line:
            line["lr"] = line.get("lr/head", line.get("lr/detector"))  # a classifier's only rate, a detector's main one
        for key in CURVES:
            value = _number(line.get(key))
            if value is not None:
                series.setdefault(key, []).append((step, value))
        words.update({key: line[key] for key in ("verdict", "reason") if isinstance(line.get(key), str)})
        if isinstance(verdict := line.get("verdict"), str) and (not verdicts or verdicts[-1][1] != verdict):
            verdicts.append((step, verdict, line["reason"] if isinstance(line.get("reason"), str) else ""))
        # Epochs are rounded, so the last line tells most exactly.
        steps_per_epoch = step / epoch if (epoch := _number(line.get("epoch"))) else steps_per_epoch
    for points in series.values():
        points.sort(key=lambda point: point[0])
    return series, words, verdicts, steps_per_epoch


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and abs(value) < _ABSURD else None
