"""The tables, curves and pictures of a report as one HTML page that loads nothing from anywhere."""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

import simsiam
from simsiam.evaluation.ledger import utc_now
from simsiam.run.curves import Line, chart, short, style_class
from simsiam.run.detection_tables import detection_table, published_detection_table
from simsiam.run.record import CURVES, Record
from simsiam.run.report import Found, Table, published_table, results_table, runs_table, sweep_table
from simsiam.run.report_assets import SCRIPT, STYLE

PICTURES = ("first_views.png", "confusion.png", "detections.png")
_PICTURE_BYTES = 2 << 20  # a page with larger ones would be no page to send

_TITLES = {
    "loss": "loss",
    "knn": "kNN top-1, percent",
    "top1": "top-1, percent",
    "AP50": "box AP50, percent",
    "AP": "box AP, percent",
    "AP75": "box AP75, percent",
    "mask_AP": "mask AP, percent",
    "std": "std of projections (1: even spread)",
    "effective_rank": "effective rank",
    "lr": "learning rate",
    "pairs_per_second": "pairs/s",
}


def page(found: Found) -> str:
    """The page as ASCII text: whatever encoding a server announces, it is read as it was meant."""
    body = []
    detection = detection_table(found.runs.values())
    if found.results or not detection.rows:
        body.append(_table(results_table(found.results, whole=True), "No run has ended with a result yet."))
        body += _others(published_table(found.results))
    if detection.rows:
        body.append(_table(detection))
        body += _others(published_detection_table(found.runs.values()))
    if found.runs:
        body.append(_table(runs_table(found.runs)))
    for kind in dict.fromkeys(run.kind for run in found.runs.values()):
        runs = {name: run for name, run in found.runs.items() if run.kind == kind}
        body += _curves(kind, runs)
    body += [_run(name, run) for name, run in found.runs.items()]
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
        yield f'<div class="others">{_table(table)}</div>'


def _table(table: Table, nothing: str = "", level: int = 2) -> str:
    heading = f"<h{level}>{escape(table.title)}</h{level}>"
    if not table.rows:
        return f"{heading}<p>{escape(nothing)}</p>"
    kinds = ["number" if header in table.numbers else "word" for header in table.headers]
    head = "".join(f'<th scope="col" class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, table.headers))
    rows = [
        "<tr>" + "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, row)) + "</tr>"
        for row in table.rows
    ]
    # With tabindex the box can be scrolled by keyboard.
    return (
        f'{heading}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _curves(kind: str, runs: dict[str, Record]) -> Iterable[str]:
    """A section of charts; against epochs where all runs know theirs."""
    by_epoch = all(run.steps_per_epoch for run in runs.values() if run.series)
    charts = []
    for key in CURVES:
        lines = []
        for style, (name, run) in enumerate(runs.items()):
            points = run.series.get(key, [])
            if by_epoch:
                points = [(step / run.steps_per_epoch, value) for step, value in points]
            if points:
                lines.append(Line(name, points, style))
        if lines:
            drawn = chart(_TITLES[key], "epoch" if by_epoch else "step", lines)
            legend = "".join(map(_legend, lines))
            charts.append(
                f"<figure><figcaption>{escape(_TITLES[key])}</figcaption>{drawn}"
                f'<p class="note"></p><ul class="legend">{legend}</ul></figure>'
            )
    if charts:
        yield f'<h2>Curves of {escape(kind)}</h2><div class="charts">{"".join(charts)}</div>'


def _legend(line: Line) -> str:
    mark = f'<svg class="mark {style_class(line.style)}" viewBox="0 0 24 8"><path class="line" d="M0 4h24"/></svg>'
    return f"<li>{mark} {escape(line.name)} <b>{short(line.points[-1][1])}</b></li>"


def _run(name: str, run: Record) -> str:
    """What belongs to one run alone: its command, reason, sweep, pictures, summary and settings."""
    parts = [f"<section><h2>{escape(name)}</h2>", f"<p>{escape(str(run.path))}</p>"]
    if run.command:
        parts.append(f"<pre>{escape(run.command)}</pre>")
    if run.figure("reason"):
        parts.append(f"<p>{escape(str(run.figure('reason')))}</p>")
    cells = _sweep(run.path / "sweep.json")
    if cells:
        parts.append(_table(sweep_table(cells), level=3))
    parts += [_picture(run.path / file) for file in PICTURES if (run.path / file).is_file()]
    for title, values in (("summary.json", run.summary), ("config.yaml", run.config)):
        if values:
            shown = escape(json.dumps(values, indent=2, default=str))
            parts.append(f"<details><summary>{title}</summary><pre>{shown}</pre></details>")
    return "".join([*parts, "</section>"])


def _sweep(path: Path) -> list[dict]:
    try:
        cells = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [one for one in cells if isinstance(one, dict)] if isinstance(cells, list) else []


def _picture(path: Path) -> str:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _PICTURE_BYTES else b""
    except OSError:
        return ""
    if size > _PICTURE_BYTES:
        return f"<p>{escape(path.name)} is too large for this page ({size:,} bytes); it lies in the run folder.</p>"
    if not data.startswith(b"\x89PNG"):
        return f"<p>{escape(path.name)} is damaged.</p>"
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure class="picture"><img alt="{path.name}" src="{source}"><figcaption>{path.name}</figcaption></figure>'
    )
