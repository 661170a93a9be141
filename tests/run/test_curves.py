"""A chart shows each value where it is, however long or flat the run."""

import math
import re

import pytest

from simsiam.run.curves import Line, chart, labelled, thinned, ticks


def test_thinning_keeps_the_ends_and_every_extreme():
    points = [(float(n), math.sin(n / 3000)) for n in range(100_000)]
    points[31_415] = (31_415.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    thin = thinned(points)
    assert len(thin) <= 802
    assert {points[0], points[-1], points[31_415], points[77_777]} <= set(thin)
    assert thin == sorted(thin)
    assert set(thin) <= set(points)
    assert thinned(points[:802]) == points[:802]
    assert len(thinned([(float(n), 1.0) for n in range(5000)])) <= 402
    assert thinned([(7.0, float(n)) for n in range(900)])[-1] == (7.0, 899.0)


def test_thinning_goes_by_the_axis_and_not_by_the_count():
    """Ten times as many points in the second half of a run get no more room than it has on the page."""
    points = [(float(n), 0.0) for n in range(10_000)] + [(10_000 + n / 10, float(n % 2)) for n in range(100_000)]
    thin = thinned(points)
    halves = [sum(x < 10_000 for x, _ in thin), sum(x >= 10_000 for x, _ in thin)]
    assert halves == [200, pytest.approx(400, abs=3)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, "0 20 40 60 80 100"), (-1, 0, "-1.0 -0.8 -0.6 -0.4 -0.2 0.0"), (31.2, 33.9, "31.5 32.0 32.5 33.0 33.5"),
     (0, 0.05, "0.00 0.01 0.02 0.03 0.04 0.05"), (0, 93_600, "0 20,000 40,000 60,000 80,000")],
)  # fmt: skip
def test_ticks_are_round_and_within(low, high, expected):
    assert " ".join(labelled(ticks(low, high))) == expected


def test_ticks_are_distinct_and_few_on_any_scale():
    for power in range(-8, 9):
        for width in (1.0, 1.3, 2.4, 4.9, 5.1, 9.9):
            low, high = 3 * 10.0**power, (3 + width) * 10.0**power
            values = ticks(low, high)
            assert 2 <= len(values) <= 8
            assert all(low * 0.999 <= value <= high * 1.001 for value in values)
            assert len(set(labelled(values))) == len(values)


def plotted(svg):
    """The values of an SVG's lines, read back as the page's script does."""
    _, left, top, width, height, x0, x1, y0, y1 = map(float, re.search(r'data-plot="([^"]+)"', svg)[1].split())
    lines = [[tuple(map(float, p.split(","))) for p in found.split()] for found in re.findall(r'points="([^"]+)"', svg)]
    return [
        [(x0 + (x - left) / width * (x1 - x0), y1 - (y - top) / height * (y1 - y0)) for x, y in line] for line in lines
    ]


def test_a_chart_shows_the_values_where_they_are():
    lines = [Line("a", [(0, -0.1), (1, -0.5), (2, -0.9)], 0), Line("b", [(0.5, -0.2)], 11)]
    svg = chart("loss", "epoch", lines)
    for line, drawn in zip(lines, plotted(svg), strict=True):
        assert drawn == [(pytest.approx(x, abs=0.01), pytest.approx(y, abs=0.01)) for x, y in line.points]
    assert 'class="series c0 d0"' in svg
    assert 'class="series c1 d1"' in svg
    assert 'data-y="-0.1 -0.5 -0.9"' in svg
    assert "<title>a: -0.9 at epoch 2; lowest -0.9, highest -0.1 since epoch 0</title>" in svg
    assert ">epoch</text>" in svg


@pytest.mark.parametrize("points", [[(0, 0)], [(5, 0.06), (6, 0.06)], [(1, 1e-30), (2, 2e-30)], [(0, 1e9), (1, -1e9)]])
def test_flat_and_extreme_curves_can_be_drawn(points):
    svg = chart("lr", "step", [Line("a", points, 0)])
    assert "nan" not in svg
    for x, y in (map(float, place.split(",")) for place in re.search(r'points="([^"]+)"', svg)[1].split()):
        assert 58 <= x <= 400
        assert 10 <= y <= 210
