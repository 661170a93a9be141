"""`simsiam tables`: the paper's ablations rerun, each row's answer beside the number that the paper prints."""

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from simsiam.atomic import write_atomically
from simsiam.commands.scripts import add_settings, run_script
from simsiam.errors import UserError
from simsiam.run.paper_tables import TABLES, Row, Scaled
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain

HELP = "rerun a table of the SimSiam paper row by row, and print ours beside the paper's"

_SCALES = {
    "cpu": ("quickstart", "lincls-quickstart"),
    "cifar": ("cifar10-r18", "lincls-cifar10"),
    "imagenet": ("imagenet-r50-100ep", "lincls-imagenet"),
}


class Answer(NamedTuple):
    """What came of a row; None where there is no such number."""

    knn: float | None
    linear: float | None
    loss: float | None
    std: float | None
    state: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam tables`."""
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"one of {', '.join(TABLES)}; none lists them")
    parser.add_argument(
        "--scale", choices=_SCALES, default="cpu", help="the recipe that every row starts from (default %(default)s)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="a run folder for each row (default: runs/tables/SCALE)")
    parser.add_argument("--rows", metavar="LIST", help="some rows only, by name, with commas between")
    parser.add_argument("--ranks", type=int, default=0, help="processes (default: all GPUs, or two on CPU)")
    parser.add_argument("--no-linear", action="store_true", help="kNN alone, without linear classification")
    add_settings(parser, "which changes that recipe for every row: --settings --data FOLDER --epochs 2")


def run(arguments: argparse.Namespace) -> None:
    """Runs what has not been run, in order; an interrupted table goes on with the row it was in.

    Raises UserError for an unknown table or row, and where a folder holds a row with other settings.
    """
    if arguments.table is None:
        width = max(map(len, TABLES))
        for name, (title, rows) in TABLES.items():
            print(f"{name:<{width}}  {title}: {', '.join(row.name for row in rows)}")
        return
    rows = _rows(arguments.table, arguments.rows)
    import torch

    ranks = arguments.ranks or torch.cuda.device_count() or 2
    folder = Path(arguments.out or f"runs/tables/{arguments.scale}") / arguments.table
    pretrained, linear = _SCALES[arguments.scale]
    base = ["--recipe", pretrained, *arguments.settings]
    for row in rows:
        place = folder / row.name
        ran = _run_once("pretrain.py", [*base, *row_words(row, base), "--out", str(place)], place, ranks)
        if not arguments.no_linear and (place / "completed").exists():
            measured = place / "linear"
            words = ["--recipe", linear, *_data(arguments.settings), "--pretrained", str(place), "--out", str(measured)]
            ran |= _run_once("lincls.py", words, measured, ranks)
        if ran or row is rows[-1]:
            _show(arguments.table, folder, arguments.scale)


def row_words(row: Row, base: list[str]) -> list[str]:
    """The settings of a row as words of a command line, numbers scaled to what the words of `base` ask for."""
    settings = asdict(parse(Pretrain, base, recipe="", prog="pretrain.py"))
    words = []
    for key, value in row.changes.items():
        if isinstance(value, Scaled):
            section, _, name = value.of.rpartition(".")
            scaled = value.share * (settings[section] if section else settings)[name]
            value = scaled if key.endswith("epochs") else max(1, round(scaled))
        words += [f"--{key}", str(value)]
    return words


def _show(table: str, folder: Path, scale: str) -> None:
    """Prints the table with every row that has ended, whoever ran it, and writes table.md and table.json."""
    rows = TABLES[table][1]
    answers = {row.name: _answer(folder / row.name) for row in rows if _has_ended(folder / row.name)}
    text = table_text(table, rows, answers, scale)
    write_atomically(folder / "table.md", text)
    write_atomically(folder / "table.json", json.dumps({n: a._asdict() for n, a in answers.items()}, indent=2) + "\n")
    print(f"\n{text}", flush=True)


def table_text(table: str, rows: tuple[Row, ...], answers: dict[str, Answer], scale: str) -> str:
    """Markdown: ours and the paper's in columns of their own, never mixed."""
    header = ["row", f"kNN ({scale}, ours)", f"linear ({scale}, ours)", "loss", "std", "state"]
    lines = [[*header, "published: ImageNet, 100 epochs, linear", "the paper's words"]]
    lines.append(["---", *["---:"] * 4, "---", "---:", "---"])
    for row in rows:
        told = answers.get(row.name, Answer(None, None, None, None, "not run yet"))
        cells = [_cell(told.knn, 1), _cell(told.linear, 1), _cell(told.loss, 3), _cell(told.std, 3), told.state]
        lines.append([row.name, *cells, row.paper, row.note])
    return f"{TABLES[table][0]}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(table: str, wanted: str | None) -> tuple[Row, ...]:
    if table not in TABLES:
        raise UserError(f"There is no table {table!r}; take one of {', '.join(TABLES)}")
    rows = TABLES[table][1]
    if wanted is None:
        return rows
    known = {row.name: row for row in rows}
    strange = [name for name in wanted.split(",") if name not in known]
    if strange:
        raise UserError(f"Table {table} has no row {strange[0]!r}; it has {', '.join(known)}")
    return tuple(known[name] for name in wanted.split(","))


def _run_once(script: str, words: list[str], folder: Path, ranks: int) -> bool:
    """Runs or goes on with a run, and says whether it did: one that has ended, or stopped itself, is left alone.

    Raises UserError where the folder holds a run of another command.
    """
    asked, told = shlex.join([script, *words]), folder / "row.txt"
    if told.exists() and told.read_text().strip() != asked:
        raise UserError(f"{folder} holds a row of other settings ({told}); give another --out")
    if _has_ended(folder):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(told, asked + "\n")
    try:
        run_script(script, *words, ranks=ranks)
    except UserError:
        if not _has_ended(folder):
            raise
    return True


def _has_ended(folder: Path) -> bool:
    """Whether a run has its answer: it ended, or stopped itself, since diverging is an answer too."""
    stopped = (folder / "failed").exists() and "reason" in _read(folder / "summary.json")
    return stopped or (folder / "completed").exists()


def _answer(folder: Path) -> Answer:
    summary, linear = (_read(place / "summary.json") for place in (folder, folder / "linear"))
    state = summary.get("verdict", "") if summary.get("state") == "completed" else summary.get("reason", "failed")
    return Answer(summary.get("knn"), linear.get("top1"), summary.get("loss"), summary.get("std"), str(state))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _data(words: list[str]) -> list[str]:
    """The setting `data` among words, as it is written there."""
    for position, word in enumerate(words):
        if word == "--data":
            return words[position : position + 2]
        if word.startswith("--data="):
            return [word]
    return []


def _cell(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
