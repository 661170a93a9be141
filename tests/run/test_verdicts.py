"""Verdicts are told with when they changed and why, and seen over the length of the run."""

import json
import re

from simsiam.run.record import read_run
from simsiam.run.verdicts import changes, verdicts
from tests.run.fakes import classification, pretraining


def judged(folder, *states, reason=""):
    run = pretraining(folder, state="in-progress")
    lines = [
        {"step": step, "epoch": step / 10, "loss": 0.0, "verdict": state, "reason": reason * (state != "ok")}
        for step, state in enumerate(states, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(run)


def strip(run):
    """(class, start, width) of each part."""
    (html,) = verdicts({"a": run})
    return [(c, int(x), int(w)) for c, x, w in re.findall(r'<rect class="(\w+)" x="(\d+)" width="(\d+)"', html)]


def test_changes_are_told_with_epoch_step_and_reason(tmp_path):
    run = judged(tmp_path / "a", "ok", "ok", "warn", "collapsed", "collapsed", reason="std is low")
    assert run.verdicts == [(1.0, "ok", ""), (3.0, "warn", "std is low"), (4.0, "collapsed", "std is low")]
    assert changes(run) == (
        "ok; warn from epoch 0.3 (step 3): std is low; collapsed from epoch 0.4 (step 4): std is low"
    )
    assert changes(judged(tmp_path / "b", "ok", "ok")) == "ok so far"
    assert changes(read_run(pretraining(tmp_path / "c"))) == "ok to the end"
    assert changes(judged(tmp_path / "d", "stuck", reason="the loss stays high")) == "stuck: the loss stays high"


def test_a_run_on_the_edge_is_told_shortly(tmp_path):
    told = changes(judged(tmp_path / "a", *["ok", "warn"] * 500))
    assert told.startswith(
        "ok; warn from epoch 0.2 (step 2); ok from epoch 0.3 (step 3); warn from epoch 0.4 (step 4);"
    )
    assert "; 994 more changes; " in told
    assert told.count("; ") == 6
    assert told.endswith("warn from epoch 100 (step 1,000)")


def test_the_strip_has_each_verdict_where_it_was(tmp_path):
    run = judged(tmp_path / "a", *["ok"] * 50, *["warn"] * 25, *["ok"] * 25)
    assert strip(run) == [("ok", 0, 204), ("warn", 204, 100), ("ok", 304, 96)]


def test_a_moment_of_collapse_is_seen_in_a_long_run(tmp_path):
    run = judged(tmp_path / "a", *["ok"] * 4000, "collapsed", *["ok"] * 3999)
    assert strip(run) == [("ok", 0, 200), ("collapsed", 200, 1), ("ok", 201, 199)]


def test_runs_without_verdicts_have_no_section_and_words_of_others_stay_text(tmp_path):
    assert list(verdicts({"lin": read_run(classification(tmp_path / "lin"))})) == []
    (html,) = verdicts({"<b>": judged(tmp_path / "a", "<script>", reason="<script>")})
    assert "<script>" not in html
    assert "&lt;script&gt;: &lt;script&gt;" in html
    assert 'class="other"' in html
