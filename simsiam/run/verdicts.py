"""The verdicts of runs: a strip a run over its length, and in words when they changed."""

from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby

from simsiam.run.curves import short
from simsiam.run.record import Record

_STATES = ("ok", "warn", "stuck", "collapsed")
_FIRST, _LAST = 3, 2  # changes that are told; a run on the edge has hundreds
_STRIPES = 400  # that a strip is drawn of, at most


def verdicts(runs: Mapping[str, Record]) -> Iterable[str]:
    """A section of the page; nothing where no run has a verdict."""
    judged = {name: run for name, run in runs.items() if run.verdicts}
    if judged:
        key = "".join(f'<li><i class="state {state}"></i> {state}</li>' for state in _STATES)
        rows = "".join(
            f"<li><b>{escape(name)}</b>{_strip(run)}<span>{escape(changes(run))}</span></li>"
            for name, run in judged.items()
        )
        yield f'<h2>Verdicts</h2><ul class="legend">{key}</ul><ul class="verdicts">{rows}</ul>'


def changes(run: Record) -> str:
    """`ok to the end`, or `ok; collapsed from epoch 1.5 (step 60): why`."""
    (_, first, why), *later = run.verdicts
    if not later and not why:
        return f"{first} to the end" if run.state == "completed" else f"{first} so far"
    told = [_told(f"{state} from {_when(run, step)}", reason) for step, state, reason in later]
    if len(told) > _FIRST + _LAST:
        told[_FIRST:-_LAST] = [f"{len(told) - _FIRST - _LAST:,} more changes"]
    return "; ".join([_told(first, why), *told])


def _told(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def _when(run: Record, step: float) -> str:
    at = f"step {step:,.0f}"
    return f"epoch {short(step / run.steps_per_epoch)} ({at})" if run.steps_per_epoch else at


def _strip(run: Record) -> str:
    """The length of the run, in the colours of its verdicts."""
    drawn, start = [], 0
    for state, of_state in groupby(_stripes(run)):
        end = start + len(list(of_state))
        drawn.append(f'<rect class="{state}" x="{start}" width="{end - start}" height="10"/>')
        start = end
    said = escape(run.verdicts[-1][1])
    return (
        f'<svg class="strip" viewBox="0 0 {_STRIPES} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="verdict at the end: {said}">{"".join(drawn)}</svg>'
    )


def _stripes(run: Record) -> list[str]:
    """The verdict over each part of the run; of several in one part the worst, so that none is too short to be seen."""
    last = max([run.verdicts[-1][0], *(points[-1][0] for points in run.series.values())]) or 1.0
    begin: dict[int, list[str]] = {}
    for number, (step, state, _) in enumerate(run.verdicts):
        place = min(int(_STRIPES * step / last), _STRIPES - 1) if number else 0
        begin.setdefault(place, []).append(state if state in _STATES else "other")
    stripes, goes_on = [], ""
    for place in range(_STRIPES):
        here = begin.get(place, [goes_on])
        stripes.append(max(here, key=_badness))
        goes_on = here[-1]
    return stripes


def _badness(state: str) -> int:
    return _STATES.index(state) if state in _STATES else 0
