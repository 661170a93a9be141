"""The tables, curves and pictures of a report as one HTML page that loads nothing from anywhere."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape

import simsiam
from simsiam.evaluation.ledger import utc_now
from simsiam.run.charts import charts, lacking
from simsiam.run.curves import Line, chart, short, style_class
from simsiam.run.detection_tables import detection_table, published_detection_table
from simsiam.run.record import Record
from simsiam.run.report import Found, Table, published_table, results_table, runs_table
from simsiam.run.report_assets import SCRIPT, STYLE
from simsiam.run.report_run import run_section, table_html
from simsiam.run.verdicts import verdicts

_FEW = 3  # runs whose sections are open when the page is


def page(found: Found, without_gallery: Mapping[str, str] | None = None) -> str:
    """The page as ASCII text: whatever encoding a server announces, it is read as it was meant.

    Args:
        without_gallery: run -> what kept this report from making its neighbours and map, a sentence without its stop.
    """
    body = []
    detection = detection_table(found.runs.values())
    if found.results or not detection.rows:
        body.append(table_html(results_table(found.results, whole=True), "No run has ended with a result yet."))
        body += _others(published_table(found.results))
    if detection.rows:
        body.append(table_html(detection))
        body += _others(published_detection_table(found.runs.values()))
    if found.runs:
        body.append(table_html(runs_table(found.runs)))
    for kind in dict.fromkeys(run.kind for run in found.runs.values()):
        runs = {name: run for name, run in found.runs.items() if run.kind == kind}
        body += [*_curves(kind, runs), *verdicts(runs)]
    why_not, are_few = without_gallery or {}, len(found.runs) <= _FEW
    body += [run_section(name, run, why_not.get(name, ""), is_open=are_few) for name, run in found.runs.items()]
    # Only the script below may run and nothing may be fetched, whatever a run is called.
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>simsiam report</title><style>{STYLE}</style></head>\n<body><h1>simsiam report</h1>\n"
        + "\n".join(body)
        + f"\n<footer>Made {utc_now()} by simsiam {simsiam.__version__}.</footer>\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _others(table: Table) -> Iterable[str]:
    if table.rows:
        yield f'<div class="others">{table_html(table)}</div>'


def _curves(kind: str, runs: dict[str, Record]) -> Iterable[str]:
    """A section of charts, and which are not there."""
    figures = []
    for title, x_name, lines in charts(runs):
        legend = "".join(map(_legend, lines))
        figures.append(
            f'<figure><figcaption>{escape(title)}<span class="note"></span></figcaption>{chart(title, x_name, lines)}'
            f'<ul class="legend values">{legend}</ul></figure>'
        )
    lacks = lacking(kind, runs)
    said = f'<p class="lacking">None of these runs has logged: {escape("; ".join(lacks))}.</p>' if lacks else ""
    yield f'<h2>Curves of {escape(kind)}</h2><div class="charts">{"".join(figures)}</div>{said}'


def _legend(line: Line) -> str:
    mark = f'<svg class="mark {style_class(line.style)}" viewBox="0 0 24 8"><path class="line" d="M0 4h24"/></svg>'
    return f"<li>{mark}<span>{escape(line.name)}</span><b>{short(line.points[-1][1])}</b></li>"
