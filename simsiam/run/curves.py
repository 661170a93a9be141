"""Curves of several runs in one SVG, without a library: ticks, thinning, lines, and a title under the pointer."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 420, 250  # small, so that its text stays readable at a phone's width
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 10, 40
_COLOURS, _DASHES = 10, 4  # classes of the page's style sheet
_DOTTED = 30  # points up to which each has a dot
_DENSE = 300  # points above which a noisy line fills a band, and is drawn so that others are seen behind it


class Line(NamedTuple):
    """A run in a chart: `style` numbers its colour and dashes, the same in all charts of a page."""

    name: str
    points: Points
    style: int


def thinned(points: Points, buckets: int = 400) -> list[tuple[float, float]]:
    """The first point, the last, and the lowest and highest of each of `buckets` equal stretches of the axis.

    Args:
        points: in order of x.
        buckets: no wider than a pixel or two, so that the eye misses nothing.
    """
    if len(points) <= 2 * buckets + 2 or points[0][0] == points[-1][0]:
        return list(points)
    left, scale = points[0][0], buckets / (points[-1][0] - points[0][0])
    lowest, highest = {}, {}
    for place, (x, y) in enumerate(points):
        bucket = min(int((x - left) * scale), buckets - 1)
        if y < points[lowest.setdefault(bucket, place)][1]:
            lowest[bucket] = place
        if y > points[highest.setdefault(bucket, place)][1]:
            highest[bucket] = place
    return [points[place] for place in sorted({0, len(points) - 1, *lowest.values(), *highest.values()})]


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers between two, 1, 2 or 5 times a power of ten apart, at most `most`."""
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def labelled(values: Sequence[float]) -> list[str]:
    """Ticks as text, all with as many decimals as the distance between them needs."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4:
        return [f"{value:.1e}" if value else "0" for value in values]
    return [f"{value + 0.0:,.{decimals}f}" for value in values]


def style_class(style: int) -> str:
    """The classes of a line and its mark in a legend: ten colours, then again with dashes."""
    return f"c{style % _COLOURS} d{style // _COLOURS % _DASHES}"


def short(value: float) -> str:
    """Four significant digits, without an exponent where there need not be one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def chart(title: str, x_name: str, lines: Sequence[Line]) -> str:
    """An SVG element with axes, ticks and one polyline a run; the horizontal axis begins at 0.

    A script reads the place of a point off the line, by the element's `data-plot`, and its value off `data-y`.

    Args:
        x_name: what the horizontal axis counts, such as `epoch`.
        lines: at least one, each with at least one point; thinned here.
    """
    shown = [line._replace(points=thinned(line.points)) for line in lines]
    x_low, x_high = _range([0.0, *(x for line in shown for x, _ in line.points)], margin=0.0)
    y_low, y_high = _range([y for line in shown for _, y in line.points], margin=0.04)
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + width * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        return _TOP + height * (y_high - y) / (y_high - y_low)

    bottom = HEIGHT - _BOTTOM
    plot = " ".join(f"{n:.10g}" for n in (WIDTH, _LEFT, _TOP, width, height, x_low, x_high, y_low, y_high))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" data-plot="{plot}">']
    y_ticks, x_ticks = ticks(y_low, y_high), ticks(x_low, x_high)
    for y, label in zip(y_ticks, labelled(y_ticks)):
        parts.append(f'<path class="grid" d="M{_LEFT} {down(y):.2f}h{width}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{down(y) + 4:.2f}" text-anchor="end">{label}</text>')
    for x, label in zip(x_ticks, labelled(x_ticks)):
        parts.append(f'<path class="axis" d="M{across(x):.2f} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{across(x):.2f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}h{width}"/>')
    middle = _LEFT + width / 2
    parts.append(
        f'<text class="tick" data-x="" x="{middle:g}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<path class="rule" d="M0 {_TOP}V{bottom}"/>')
    for line in shown:
        places = [(across(x), down(y)) for x, y in line.points]
        joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
        dense = " dense" if len(places) > _DENSE else ""
        parts.append(f'<g class="series {style_class(line.style)}{dense}"><title>{escape(_told(line, x_name))}</title>')
        values = " ".join(short(y) for _, y in line.points)
        parts.append(f'<polyline points="{joined}" data-name="{escape(line.name)}" data-y="{values}"/>')
        for (x, y), (left, top) in zip(line.points, places) if len(places) <= _DOTTED else ():
            about = escape(f"{line.name}: {short(y)} at {x_name} {short(x)}")
            parts.append(f'<circle cx="{left:.2f}" cy="{top:.2f}" r="2.5"><title>{about}</title></circle>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """From the least to the greatest, and some more; never empty."""
    low, high = min(values), max(values)
    # A flat line is drawn in the middle; a range below rounding error would have ticks that look alike.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        spread = abs(high) / 10 or 1.0
        return low - spread, high + spread
    return low - margin * (high - low), high + margin * (high - low)


def _told(line: Line, x_name: str) -> str:
    values = [y for _, y in line.points]
    (first, _), (last, y) = line.points[0], line.points[-1]
    return (
        f"{line.name}: {short(y)} at {x_name} {short(last)}; "
        f"lowest {short(min(values))}, highest {short(max(values))} since {x_name} {short(first)}"
    )
