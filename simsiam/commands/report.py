"""`simsiam report`: what came of runs, as tables on the terminal and one page to look at or send."""

import argparse

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
    _write(arguments.out, page(found))
    results = len(found.results) + len(detection.rows)
    say("found", f"{counted(results, 'result')}, {counted(len(found.runs), 'run')}")
    say("page", arguments.out)


def _write(path: str, text: str) -> None:
    from pathlib import Path

    from simsiam.errors import UserError

    try:
        Path(path).write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give a file that you may write to") from None
