"""curves.svg: the curves of one run as a picture in its folder, by day and by night."""

import re
from html import escape

from simsiam.atomic import write_atomically
from simsiam.run.charts import charts
from simsiam.run.curves import HEIGHT, WIDTH, chart
from simsiam.run.record import Record
from simsiam.run.report_assets import PICTURE_STYLE

CURVES_FILE = "curves.svg"

_COLUMNS, _TITLE, _GAP, _HEAD = 2, 24, 20, 44
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # a folder may be called anything


def write_curves(run: Record) -> bool:
    """Draws the run's curves into its folder; False where it has none. Raises OSError where the disk refuses."""
    picture = curves_svg(run)
    if picture:
        write_atomically(run.path / CURVES_FILE, picture)
    return bool(picture)


def curves_svg(run: Record) -> str:
    """An SVG document with a chart for each figure of the run; empty where it has logged none."""
    name = run.path.resolve().name
    drawn = [(one.title, chart(*one)) for one in charts({name: run})]
    if not drawn:
        return ""
    rows = -(-len(drawn) // _COLUMNS)
    width = _COLUMNS * WIDTH + (_COLUMNS + 1) * _GAP
    height = _HEAD + rows * (_TITLE + HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{PICTURE_STYLE}</style><rect class="page" width="{width}" height="{height}"/>'
        f'<text class="head" x="{_GAP}" y="28">{escape(" - ".join(filter(None, (name, run.state))))}</text>'
    ]
    for number, (title, svg) in enumerate(drawn):
        row, column = divmod(number, _COLUMNS)
        x, y = _GAP + column * (WIDTH + _GAP), _HEAD + row * (_TITLE + HEIGHT + _GAP)
        placed = svg.replace("<svg ", f'<svg x="{x}" y="{y + _TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts += [f'<text class="title" x="{x + 8}" y="{y + 14}">{escape(title)}</text>', placed]
    return _NOT_XML.sub("?", "".join([*parts, "</svg>\n"]))
