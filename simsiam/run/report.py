"""Ledgers and run folders -> tables: our results, what others published, and how the runs went."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from simsiam.data.sources.transfer_sets import SETS
from simsiam.errors import UserError
from simsiam.evaluation.ledger import Result, knn_cell, read
from simsiam.run.published import published
from simsiam.run.record import Record, is_run_folder, read_run

LEDGER = "results.jsonl"

_DEPTH = 3  # folders below a PATH that are searched
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10"}
_DATASETS |= dict.fromkeys(("shapes", "digits", *SETS), "")  # nothing is published of them here
_OF_A_RUN = ("checkpoints", "tensorboard", "sweep", "trials")  # folders in a run folder that are not searched
_SUBSETS = {"1pct": "1pct", "1%": "1pct", "0.01": "1pct", "10pct": "10pct", "10%": "10pct", "0.1": "10pct"}
_KNN = knn_cell(200, 0.1)


@dataclass(frozen=True)
class Found:
    """What lies at the paths of a report.

    Attributes:
        results: of the ledgers in their order, then of completed runs that no ledger tells of. Runs of detection
            are not among them: they have other figures and `detection_table`.
        runs: run folders by the name that tells them apart.
    """

    results: list[Result]
    runs: dict[str, Record]


class Table(NamedTuple):
    """Cells as text. `numbers`: which columns are numbers and stand at the right."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str]


def gather(paths: Iterable[str]) -> Found:
    """Results and runs at some paths: ledgers, run folders, and folders that hold either up to three levels down.

    Raises UserError where a path does not exist or where there is nothing at all.
    """
    paths = list(paths)
    ledgers: dict[Path, None] = {}  # as an ordered set
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            for folder in (folder.resolve() for folder in _folders(path, _DEPTH)):  # a link to a run is that run
                if (folder / LEDGER).is_file():
                    ledgers[folder / LEDGER] = None
                if is_run_folder(folder):
                    folders[folder] = None
        elif not path.exists():
            raise UserError(f"{path} does not exist; give a {LEDGER}, a run folder, or a folder of them")
        elif path.name == "metrics.jsonl":
            folders[path.resolve().parent] = None
        else:
            ledgers[path.resolve()] = None
    results = {str(asdict(result)): result for ledger in ledgers for result in read(ledger)}  # copies count once
    runs = [read_run(folder) for folder in folders]
    ours = [result for run in runs if (result := _result_of(run)) and not _is_told(run, result, results.values())]
    if not results and not runs:
        raise UserError(
            f"There is neither a result nor a run in {', '.join(paths) or 'an empty list of paths'}; "
            f"give a {LEDGER}, a run folder, or a folder of them"
        )
    return Found([*results.values(), *ours], _named(runs))


def results_table(results: Sequence[Result], *, whole: bool = False) -> Table:
    """Our results, a row each. A kNN accuracy of the same encoder and data stands beside its other protocols.

    Args:
        whole: with hardware and all further figures.
    """
    knn = {(r.encoder_sha256, r.data): r.figures[_KNN] for r in results if r.encoder_sha256 and _KNN in r.figures}
    headers = [
        "encoder",
        "protocol",
        "recipe",
        "dataset",
        "top-1",
        "top-5",
        f"kNN ({_KNN})",
        "seed",
        "hours",
        "finished",
    ]
    rows = []
    for r in results:
        beside = r.figures.get(_KNN, knn.get((r.encoder_sha256, r.data)))
        named = f"{r.encoder} ({r.encoder_name})" if r.encoder_name else r.encoder
        variant = ", a variant" if "variant" in str(r.figures.get("protocol", "")) else ""
        row = [named, r.protocol + variant, r.recipe, r.data, *map(_percent, (r.top1, r.top5, beside))]
        row += [str(r.seed), _hours(r.hours), _minute(r.finished)]
        if whole:
            more = ", ".join(f"{key} {cell(value)}" for key, value in r.figures.items() if key != _KNN)
            row += [f"{r.hardware}, {r.world_size} rank(s)" if r.hardware else "", more]
        rows.append(row)
    headers += ["hardware", "further figures"] if whole else []
    return Table("Results", headers, rows, frozenset(headers[4:9]))


def published_table(results: Sequence[Result]) -> Table:
    """What others published under the protocols of our results, and where all our data have a name, on those data.

    The mark stands in every number's header too.
    """
    named = {_DATASETS.get(result.data.partition(":")[0]) for result in results}
    not_named = None in named  # a folder may be of anything
    headers = ("method", "encoder", "epochs", "batch", "protocol", "dataset", "published top-1", "published top-5")
    rows = [
        (p.method, p.encoder, cell(p.epochs), cell(p.batch), p.protocol, p.dataset, p.top1, p.top5, p.setting, p.source)
        for p in published({result.protocol for result in results})
        if (p.top1 or p.top5) and (not_named or p.dataset in named)
    ]
    numbers = frozenset(("epochs", "batch", *headers[-2:]))
    return Table("Published by others, not measured here", (*headers, "setting", "source"), rows, numbers)


def runs_table(runs: dict[str, Record]) -> Table:
    """How each run went, a row each; with AP where one is of detection."""
    detects = any(run.kind == "detection" for run in runs.values())
    ap = ("AP",) if detects else ()
    names = ("verdict", "loss", "knn", "top1", *ap, "pairs_per_second", "seconds")
    headers = ("run", "state", "verdict", "loss", "kNN", "top-1", *ap, "pairs/s", "seconds")
    rows = [[name, run.state, *(cell(run.figure(key)) for key in names)] for name, run in runs.items()]
    return Table("Runs", headers, rows, frozenset(headers[3:]))


def sweep_table(cells: Sequence[dict]) -> Table:
    """The cells of a sweep, with every key that any of them has as a column."""
    headers = list(dict.fromkeys(key for one in cells for key in one))
    numbers = {key for key in headers if all(isinstance(one.get(key, 0), (int, float)) for one in cells)}
    return Table("Sweep", headers, [[cell(one.get(key)) for key in headers] for one in cells], frozenset(numbers))


def markdown(table: Table) -> str:
    """The table as GitHub reads it."""
    lines = [table.headers, ["---:" if header in table.numbers else "---" for header in table.headers], *table.rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def cell(value: object) -> str:
    """A number with as many decimals as tell something, a word as it is, nothing for None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _folders(root: Path, depth: int) -> list[Path]:
    """A folder and those below it, by name; what cannot be entered is left out."""
    found = [root]
    if depth:
        try:
            inner = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        except OSError:
            inner = []
        for name in inner:
            of_run = name in _OF_A_RUN and is_run_folder(root)
            if not of_run and not name.startswith("."):
                found += _folders(root / name, depth - 1)
    return found


def _named(runs: list[Record]) -> dict[str, Record]:
    """Each run by its path below the folder that all have in common."""
    if not runs:
        return {}
    common = os.path.commonpath([run.path.parent for run in runs])
    return {os.path.relpath(run.path, common): run for run in runs}


def _result_of(run: Record) -> Result | None:
    """The result of a completed run, for a report over runs that no ledger knows."""
    # Detection has other figures and a table of its own; a cell's accuracy is that of held-out training images.
    if run.kind == "detection" or run.path.parent.name == "sweep":
        return None
    name = "knn" if run.kind == "pretraining" else "top1"
    if run.state != "completed" or not isinstance(run.summary.get(name), (int, float)):
        return None
    config, pretrained = run.config, str(run.config.get("pretrained", ""))
    figures, seed = {}, config.get("seed")
    knn, seconds = config.get("knn"), run.summary.get("seconds")
    if name == "knn" and isinstance(knn, dict) and isinstance(knn.get("temperature"), (int, float)):
        figures = {knn_cell(knn.get("k"), knn["temperature"]): run.summary["knn"]}
    return Result(
        protocol="knn" if name == "knn" else _protocol(run, pretrained),
        recipe=run.recipe,
        encoder=str(config.get("out") or run.path) if name == "knn" else pretrained,
        encoder_name=str(config.get("encoder") or ""),
        # Fine-tuning changes the encoder; the result is that of the one it began with.
        encoder_sha256=str(run.summary.get("pretrained_sha256") or run.summary.get("encoder_sha256", "")),
        config_sha256=str(run.summary.get("config_sha256", "")),
        data_sha256=str(run.summary.get("data_sha256", "")),
        data=str(config.get("data", "")),
        seed=seed if isinstance(seed, int) else 0,
        top1=run.summary[name],
        top5=run.summary.get("top5") if name == "top1" else None,
        figures=figures,
        hours=seconds / 3600 if isinstance(seconds, (int, float)) else None,
        finished=datetime.fromtimestamp((run.path / "summary.json").stat().st_mtime, UTC).isoformat(timespec="seconds"),
        run=str(run.path),
    )


def _protocol(run: Record, pretrained: str) -> str:
    """By the script that wrote the folder: what only it has in its settings."""
    if isinstance(run.config.get("batchnorm"), str):
        subset = str(run.config.get("subset") or "all")
        return _SUBSETS.get(subset, f"fine-tuned on {subset}")
    word = "random-linear" if pretrained == "random" else "linear"
    return f"{word}, cached features" if run.config.get("cache_features") else word


def _is_told(run: Record, result: Result, told: Iterable[Result]) -> bool:
    """Whether a ledger has this run's result: its paths may be relative to another folder than ours."""
    for other in told:
        for place in (other.run, other.encoder if other.protocol == result.protocol else ""):
            parts = Path(os.path.normpath(place)).parts if place else ()
            if parts and run.path.parts[-len(parts) :] == parts:
                return True
    return False


def _percent(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else ""


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.2f}" if hours >= 1 else f"{hours:.2g}"


def _minute(text: str) -> str:
    """ISO 8601 to the minute, in UTC; anything else as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _plain(text: str) -> str:
    """A cell that can neither end itself nor become markup."""
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
