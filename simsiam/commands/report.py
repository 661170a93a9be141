"""`simsiam report`: what came of runs, as tables on the terminal and one page to look at or send."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsiam.run.record import Record

HELP = "tables and one HTML page of results and runs, beside what others published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam report`."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="results.jsonl, run folder, or a folder that holds such (3 levels deep)",
    )
    parser.add_argument("--out", default="report.html", help="page to write (default %(default)s)")
    parser.add_argument("--markdown", metavar="FILE", help="the printed tables, as a file too")
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="run each encoder over at most 600 images of its own data for their nearest neighbours and a map of the "
        "features, which are kept in the run folder; slow on a CPU where the encoder is large",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the tables and writes the page; raises UserError where there is nothing or where it cannot be written."""
    from simsiam.commands.say import counted, say
    from simsiam.run.detection_tables import detection_table, published_detection_table
    from simsiam.run.report import gather, markdown, published_table, results_table
    from simsiam.run.report_page import page

    found = gather(arguments.paths)
    runs, detection = found.runs.values(), detection_table(found.runs.values())
    tables = (published_table(found.results), detection, published_detection_table(runs))
    parts = [markdown(results_table(found.results))] if found.results else []
    parts += [f"{table.title}:\n\n{markdown(table)}" for table in tables if table.rows]
    text = "\n\n".join(parts or ["No run has ended with a result yet."]) + "\n"
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    if arguments.markdown:
        _write(arguments.markdown, text)
    _draw_curves(found.runs)
    without = _make_galleries(found.runs) if arguments.pictures else {}
    _write(arguments.out, page(found, without))
    results = len(found.results) + len(detection.rows)
    say("found", f"{counted(results, 'result')}, {counted(len(found.runs), 'run')}")
    say("page", arguments.out)


def _draw_curves(runs: "dict[str, Record]") -> None:
    """curves.svg of every run. Another's folder may be read-only, which is no reason to have no page."""
    from simsiam.commands.say import say
    from simsiam.run.curves_file import CURVES_FILE, write_curves

    for name, one in runs.items():
        try:
            write_curves(one)
        except OSError as error:
            say("left out", f"{CURVES_FILE} of {name}: it cannot be written ({error.strerror})")


def _make_galleries(runs: "dict[str, Record]") -> dict[str, str]:
    """Neighbours and map of every run that has an encoder of its own; run -> why it has none."""
    import torch

    from simsiam.commands.knn import views_for
    from simsiam.commands.say import say
    from simsiam.errors import UserError
    from simsiam.export.read import read_encoder
    from simsiam.run.gallery import make_gallery, without_encoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    without: dict[str, str] = {}
    for name, one in runs.items():
        if without_encoder(one):
            continue
        try:
            read = read_encoder(one.path)
            views, _ = views_for(None, read.info)
            made = make_gallery(one, read, views, device)
            say("pictures", f"{name}: {'made' if made else 'as they were'}")
        except UserError as error:
            without[name] = f"No neighbours and map: {str(error).rstrip('.')}"
            say("left out", f"neighbours and map of {name}: {error}")
    return without


def _write(path: str, text: str) -> None:
    from pathlib import Path

    from simsiam.errors import UserError

    try:
        Path(path).write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give a file that you may write to") from None
