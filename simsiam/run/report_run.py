"""The section of one run in a report's page, and tables as HTML."""

import base64
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from simsiam.run.gallery_page import gallery_parts
from simsiam.run.record import Record
from simsiam.run.report import Table, sweep_table

_PICTURES = {
    "first_views.png": ("First views", "pretraining", "is made at the first step"),
    "confusion.png": ("Confusion", "classification", "is made at the end of a run"),
    "detections.png": ("Detections", "detection", "is made at the end of a run"),
}
_PICTURE_BYTES = 2 << 20  # a page with larger ones would be no page to send


def run_section(name: str, run: Record, without_gallery: str, *, is_open: bool) -> str:
    """What belongs to one run alone: its command, reason, sweep, pictures, neighbours, map, summary and settings.

    Args:
        without_gallery: why its neighbours and map could not be made; empty where nothing kept them from it.
        is_open: whether all of it is seen before somebody asks for it.
    """
    mark = " open" if is_open else ""
    state = f" <small>{escape(run.state)}</small>" if run.state else ""
    parts = [
        f'<details class="run"{mark}><summary><h2>{escape(name)}</h2>{state}</summary><p>{escape(str(run.path))}</p>'
    ]
    if run.command:
        parts.append(f"<pre>{escape(run.command)}</pre>")
    if run.figure("reason"):
        parts.append(f"<p>{escape(str(run.figure('reason')))}</p>")
    cells = _sweep(run.path / "sweep.json")
    if cells:
        parts.append(table_html(sweep_table(cells), level=3))
    parts += [part for file in _PICTURES for part in _picture(run, file)]
    parts += gallery_parts(run, without_gallery)
    for title, values in (("summary.json", run.summary), ("config.yaml", run.config)):
        if values:
            shown = escape(json.dumps(values, indent=2, default=str))
            parts.append(f"<details><summary>{title}</summary><pre>{shown}</pre></details>")
    return "".join([*parts, "</details>"])


def table_html(table: Table, nothing: str = "", level: int = 2) -> str:
    """A table under its title, in a box that scrolls by itself; `nothing` is said where it has no rows."""
    heading = f"<h{level}>{escape(table.title)}</h{level}>"
    if not table.rows:
        return f"{heading}<p>{escape(nothing)}</p>"
    filled = [column for column in zip(table.headers, *table.rows) if any(column[1:])]  # an empty one tells nothing
    headers, *rows_of_text = zip(*filled)
    kinds = ["number" if header in table.numbers else "word" for header in headers]
    head = "".join(f'<th scope="col" class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, headers))
    rows = [
        "<tr>" + "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, row)) + "</tr>"
        for row in rows_of_text
    ]
    # With tabindex the box can be scrolled by keyboard.
    return (
        f'{heading}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sweep(path: Path) -> list[dict]:
    try:
        cells = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [one for one in cells if isinstance(one, dict)] if isinstance(cells, list) else []


def _picture(run: Record, file: str) -> Iterable[str]:
    """A picture of the folder, or why it is not there where runs of this kind have one."""
    path, (title, kind, when) = run.path / file, _PICTURES[file]
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _PICTURE_BYTES else b""
    except OSError:
        if run.kind == kind:
            yield f'<p class="lacking">No {title.lower()}: {file}, which {when}, is not in the folder.</p>'
        return
    if size > _PICTURE_BYTES:
        yield f"<p>{file} is too large for this page ({size:,} bytes); it lies in the run folder.</p>"
    elif not data.startswith(b"\x89PNG"):
        yield f"<p>{file} is damaged.</p>"
    else:
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        yield f'<figure class="picture"><figcaption>{title}</figcaption><img alt="{file}" src="{source}"></figure>'
