"""The page draws what happened, loads nothing from anywhere, and takes no name for markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from simsiam.evaluation.ledger import Result, append
from simsiam.run.report import Found, gather
from simsiam.run.report_page import page
from tests.run.fakes import classification, detection, gallery, pretraining

EVIL = "a<script>alert(1)<&\"'>"  # a legal file name
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What a browser would see: every element with its attributes, tables as text, the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self._open, "elements left open"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def test_the_page_has_all_tables_curves_and_pictures_and_loads_nothing(tmp_path):
    first = pretraining(tmp_path / "runs" / "a", steps=4000, every=1)
    pretraining(tmp_path / "runs" / "b", state="in-progress")
    lin = classification(tmp_path / "runs" / "lin")
    (first / "first_views.png").write_bytes(PNG)
    (lin / "confusion.png").write_bytes(PNG)
    gallery(first)
    (lin / "sweep.json").write_text(json.dumps([{"lr": 0.1, "top1": 70.5}, {"lr": 30.0, "top1": 80.0, "chosen": True}]))
    append(tmp_path / "results.jsonl", Result(protocol="1pct", encoder="e", top1=44.4, hardware="8 x NVIDIA H100"))
    text = page(gather([str(tmp_path)]))
    assert text.isascii()
    html = Page(text)

    ours, others, runs, sweep = html.tables
    assert [row[1] for row in ours[1:]] == ["1pct", "knn", "linear"]
    assert "8 x NVIDIA H100, 1 rank(s)" in ours[1]
    assert "published top-1" in others[0]
    assert runs == [
        ["run", "state", "verdict", "loss", "kNN", "top-1", "pairs/s", "seconds"],
        ["a", "completed", "ok", "-1", "4,030", "", "1,020", "7,200"],
        ["b", "in-progress", "ok", "-1", "70.00", "", "1,040", ""],
        ["lin", "completed", "", "2", "", "80.00", "", "36.00"],
    ]
    assert sweep == [["lr", "top1", "chosen"], ["0.1", "70.50", ""], ["30.00", "80.00", "True"]]

    curves = [a for a in html.all("svg", role="img") if "data-plot" in a]
    assert len(curves) == 6 + 3  # pretraining: all but top1; classification: loss, top1, lr
    lines = html.all("polyline")
    assert [a["data-name"] for a in lines] == ["a", "b"] * 6 + ["lin"] * 3
    for line in lines:
        assert all(re.fullmatch(r"-?[\d.]+,-?[\d.]+", place) for place in line["points"].split())
    assert 700 < len(lines[0]["points"].split()) <= 802
    assert all(len(line["points"].split()) == len(line["data-y"].split()) for line in lines)
    assert len(text) < 1_000_000

    pictures = html.all("img")
    assert [a["alt"] for a in pictures] == ["first_views.png", "confusion.png"]
    for picture in pictures:
        assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) == PNG
    for _, attributes in html.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in html.elements}
    assert not re.search(r"url\((?!data:image/jpeg;base64,)", text)
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert html.all("meta", name="viewport")
    assert "default-src 'none'" in html.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def test_detection_has_its_tables_curves_and_picture(tmp_path):
    run = detection(tmp_path / "runs" / "det", masks=True)
    (run / "detections.png").write_bytes(PNG)
    html = Page(page(gather([str(tmp_path)])))
    ours, others, runs = html.tables
    assert ours[0][6:] == ["box AP50", "box AP", "box AP75", "mask AP50", "mask AP", "mask AP75"]
    assert ours[1][6:] == ["81.50", "55.12", "61.00"] * 2
    assert "published box AP50" in others[0]
    assert runs[1][0] == "det"
    assert "No run has ended" not in html.text
    assert "Curves of detection" in html.text
    assert [a["aria-label"] for a in html.all("svg", role="img")] == [
        "loss",
        "box AP50, percent",
        "box AP, percent",
        "box AP75, percent",
        "mask AP, percent",
        "learning rate",
        "pairs/s",
    ]
    assert [a["alt"] for a in html.all("img")] == ["detections.png"]

    classification(tmp_path / "runs" / "lin")
    titles = re.findall(r"<h2>(.*?)</h2>", page(gather([str(tmp_path)])))
    assert titles[:5] == [
        "Results",
        "Published by others, not measured here",
        "Detection",
        "Detection published by others, not measured here",
        "Runs",
    ]


def test_the_pages_policy_lets_its_own_script_run_and_no_other(tmp_path):
    text = page(gather([str(pretraining(tmp_path / "a"))]))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text


def test_what_others_wrote_stays_text(tmp_path):
    run = pretraining(tmp_path / EVIL, command=f"pretrain.py --recipe {EVIL}", data=EVIL, encoder=EVIL, out=EVIL)
    (run / "sweep.json").write_text(json.dumps([{EVIL: EVIL}]))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "verdict": EVIL, "reason": EVIL}))
    append(tmp_path / "results.jsonl", Result(protocol=EVIL, encoder=EVIL, figures={EVIL: EVIL}, hardware=EVIL))
    text = page(gather([str(tmp_path)]))
    assert "alert(1)" in text
    assert "<script>alert" not in text
    html = Page(text)
    assert len(html.all("script")) == 1
    assert {a["data-name"] for a in html.all("polyline")} == {EVIL}
    assert [row[0] for row in html.tables[-1]] == [EVIL, EVIL]
    assert EVIL in html.text


def test_names_that_are_not_utf8_can_be_shown(tmp_path):
    result = Result(protocol="knn", encoder="caf\udce9 größe", top1=1.0)
    text = page(Found([result], {}))
    assert "gr&#246;&#223;e" in text
    text.encode()


def test_pictures_that_are_large_or_damaged_are_told_and_not_shown(tmp_path):
    run = pretraining(tmp_path / "a")
    (run / "first_views.png").write_bytes(PNG + bytes(2 << 20))
    (run / "confusion.png").write_bytes(b"<svg onload='alert(1)'>")
    html = Page(page(gather([str(run)])))
    assert html.all("img") == []
    assert "first_views.png is too large for this page (2,097" in html.text
    assert "confusion.png is damaged" in html.text


def test_what_is_not_there_is_told(tmp_path):
    run = pretraining(tmp_path / "a")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if "knn" not in line))
    classification(tmp_path / "lin", pretrained="runs/r50")
    found = gather([str(tmp_path)])
    html = Page(page(found))
    assert "None of these runs has logged: kNN top-1, percent." in html.text
    assert "None of these runs has logged: pairs/s." in html.text
    assert "No first views: first_views.png" in html.text
    assert "No confusion: confusion.png" in html.text
    assert "No detections" not in html.text
    assert "Neighbours and map are not made yet" in html.text
    assert "the encoder is not this run's own, but that of runs/r50" in html.text
    assert "its data is elsewhere" in Page(page(found, {"a": "No neighbours: its data is elsewhere"})).text


def test_runs_are_open_where_they_are_few(tmp_path):
    for name in "abc":
        pretraining(tmp_path / name)
    assert len(Page(page(gather([str(tmp_path)]))).all("details", **{"class": "run", "open": None})) == 3
    pretraining(tmp_path / "d")
    html = Page(page(gather([str(tmp_path)])))
    assert len(html.all("details", **{"class": "run"})) == 4
    assert not [a for a in html.all("details") if "open" in a]


def test_the_page_says_when_a_verdict_changed(tmp_path):
    html = Page(page(gather([str(pretraining(tmp_path / "a", collapses_at=20))])))
    assert "ok; collapsed from epoch 2 (step 20): std is low" in html.text


def test_curves_are_against_steps_where_a_run_does_not_know_its_epochs(tmp_path):
    pretraining(tmp_path / "a")
    other = pretraining(tmp_path / "b")
    (other / "metrics.jsonl").write_text('{"step": 7, "loss": -0.5}\n')
    text = page(gather([str(tmp_path)]))
    assert ">step</text>" in text
    assert ">epoch</text>" not in text


def test_without_a_result_the_page_says_so_and_shows_the_run(tmp_path):
    html = Page(page(gather([str(pretraining(tmp_path / "a", state="in-progress"))])))
    assert "No run has ended with a result yet" in html.text
    assert html.all("polyline")


def test_a_damaged_run_has_a_page_too(tmp_path):
    run = pretraining(tmp_path / "a")
    for name in ("config.yaml", "summary.json", "sweep.json"):
        (run / name).write_text("{")
    assert Page(page(gather([str(run)]))).all("polyline")
