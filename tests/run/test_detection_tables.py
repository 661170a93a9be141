"""Detection has tables of its own: ours, and beside them what others published on the same sets."""

import re

import pytest

from simsiam.run.detection_tables import detection_table, published_detection_table
from simsiam.run.published_detection import PUBLISHED_DETECTION
from simsiam.run.report import gather, runs_table
from tests.run.fakes import classification, detection

FIGURES = ("AP50", "AP", "AP75")
COCO = {"train_sets": ["coco_2017_train"], "test_set": "coco_2017_val", "data": "/data/coco"}


def rows(table):
    return [dict(zip(table.headers, row)) for row in table.rows]


def ours(folder):
    return rows(detection_table(gather([str(folder)]).runs.values()))


def others(folder):
    return published_detection_table(gather([str(folder)]).runs.values())


# Ours.


def test_a_completed_run_is_a_row(tmp_path):
    detection(tmp_path / "a", encoder="resnet50", head="fpn")
    assert ours(tmp_path) == [
        {
            "encoder": "runs/r50 (resnet50)",
            "trained on": "voc_2007_trainval + voc_2012_trainval",
            "tested on": "voc_2007_test",
            "head": "fpn",
            "iterations": "24,000",
            "trials": "1",
            "box AP50": "81.50",
            "box AP": "55.12",
            "box AP75": "61.00",
        }
    ]


def test_trials_are_one_row_with_their_deviation_and_are_not_found_themselves(tmp_path):
    run = detection(tmp_path / "a", trials=3)
    found = gather([str(tmp_path)])
    assert list(found.runs) == ["a"]
    assert found.results == []
    (row,) = rows(detection_table(found.runs.values()))
    assert [row["trials"], *(row[f"box {name}"] for name in FIGURES)] == [
        "3",
        "81.50 +- 0.20",
        "55.12 +- 0.20",
        "61.00 +- 0.20",
    ]
    assert [row["trials"] for row in ours(run / "trials" / "2")] == ["1"]
    detection(tmp_path / "trials" / "named-so-by-the-user")
    assert len(ours(tmp_path)) == 2


def test_masks_have_columns_where_a_run_has_them(tmp_path):
    detection(tmp_path / "boxes")
    detection(tmp_path / "masks", masks=True, trials=2, **COCO)
    boxes, masks = ours(tmp_path)
    assert [boxes[f"mask {name}"] for name in FIGURES] == ["", "", ""]
    assert [masks[f"mask {name}"] for name in FIGURES] == ["81.50 +- 0.20", "55.12 +- 0.20", "61.00 +- 0.20"]


@pytest.mark.parametrize("state", ["failed", "in-progress"])
def test_a_run_that_did_not_complete_has_no_row_but_is_among_the_runs(tmp_path, state):
    detection(tmp_path / "a", state=state)
    found = gather([str(tmp_path)])
    assert detection_table(found.runs.values()).rows == []
    assert published_detection_table(found.runs.values()).rows == []
    (run,) = rows(runs_table(found.runs))
    assert (run["state"], run["AP"], run["pairs/s"]) == (state, "55.12", "40.00")


def test_damaged_files_leave_cells_empty(tmp_path):
    run = detection(tmp_path / "a")
    (run / "config.yaml").write_text("a: [1\n: b")
    (run / "summary.json").write_text('{"AP": NaN, "AP50": null, "AP75": "high", "AP75_std": 0.1}')
    found = gather([str(tmp_path)])
    assert found.runs["a"].kind == "detection"
    assert rows(detection_table(found.runs.values())) == [
        dict.fromkeys(("encoder", "trained on", "tested on", "head", "iterations"), "")
        | {"trials": "1"}
        | dict.fromkeys((f"box {name}" for name in FIGURES), "")
    ]
    assert others(tmp_path).rows == []


def test_other_runs_are_none_of_detection_and_their_table_is_as_without_it(tmp_path):
    classification(tmp_path / "lin")
    assert ours(tmp_path) == []
    assert others(tmp_path).rows == []
    assert "AP" not in runs_table(gather([str(tmp_path)]).runs).headers


# Others'.


def test_published_rows_are_of_the_sets_tested_on_and_every_number_is_marked(tmp_path):
    detection(tmp_path / "a")
    voc = others(tmp_path)
    assert "not measured here" in voc.title
    assert {row["tested on"] for row in rows(voc)} == {"VOC 2007 test"}
    assert [header for header in voc.headers if "AP" in header] == [f"published box {name}" for name in FIGURES]
    assert set(map(len, voc.rows)) == {len(voc.headers)}
    detection(tmp_path / "b", **COCO)
    both = others(tmp_path)
    assert len(both.rows) == len(PUBLISHED_DETECTION) > len(voc.rows)
    assert [header for header in both.headers if "mask" in header] == [f"published mask {name}" for name in FIGURES]


def test_the_embedded_scenes_are_not_what_others_measured_on_and_are_named(tmp_path):
    detection(tmp_path / "a", data="shapes")
    assert others(tmp_path).rows == []
    assert [row["tested on"] for row in ours(tmp_path)] == ["voc_2007_test of shapes"]


def test_every_published_row_has_numbers_in_percent_and_a_source():
    for row in PUBLISHED_DETECTION:
        assert row.source
        assert row.box[0]
        assert len(row.box) == len(row.mask) == 3
        assert not any(row.mask) or row.task.layout == "coco"
        for number in filter(None, (*row.box, *row.mask)):
            assert re.fullmatch(r"\d\d\.\d\d?", number)
    assert len(set(PUBLISHED_DETECTION)) == len(PUBLISHED_DETECTION)


@pytest.mark.parametrize(
    ("method", "epochs", "trained", "source", "box", "mask"),
    [
        ("SimSiam, base", 200, "VOC 2007 trainval", "table 5", "75.5 47.0 50.2", None),
        ("SimSiam, optimal", 200, "VOC 2007 trainval + 2012 train", "table 5", "82.4 57.0 63.7", None),
        ("SimSiam, optimal", 200, "COCO 2017 train", "table 5", "59.3 39.2 42.1", "56.0 34.4 36.7"),
        ("random weights", None, "COCO 2017 train", "table 5", "44.0 26.4 27.8", "46.9 29.3 30.8"),
        ("MoCo v2", 800, "VOC 2007 + 2012 trainval", "moco", "82.5 57.4 64.0", None),
        ("SimSiam", 100, "COCO 2017 train", "mmselfsup", "57.6 38.6 42.3", "54.8 34.6 36.9"),
    ],
)
def test_published_numbers_are_those_of_the_sources(method, epochs, trained, source, box, mask):
    (row,) = (
        row
        for row in PUBLISHED_DETECTION
        if (row.method, row.epochs, row.task.trained) == (method, epochs, trained) and source in row.source
    )
    assert row.box == tuple(box.split())
    assert row.mask == (tuple(mask.split()) if mask else ("", "", ""))
