"""`simsiam shapes`: what it writes, says and refuses."""

import argparse

import pytest

from simsiam.commands import shapes
from simsiam.detection.coco import open_coco
from simsiam.detection.voc import open_voc
from simsiam.errors import UserError


def call(*words):
    parser = argparse.ArgumentParser()
    shapes.add_arguments(parser)
    shapes.run(parser.parse_args([*map(str, words)]))


def test_writes_both_layouts(tmp_path, capsys):
    call("--voc", tmp_path / "voc", "--coco", tmp_path / "coco", "--train", 5, "--val", 3, "--seed", 4)
    assert len(open_voc(tmp_path / "voc", [("2007", "trainval")])) == 5
    assert len(open_coco(tmp_path / "coco", "val2017")) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if "images" in line] == [
        "voc         trainval: 5 images",
        "voc         test: 3 images",
        "coco        train2017: 5 images",
        "coco        val2017: 3 images",
    ]
    assert (tmp_path / "voc/preview.png").is_file()


def test_refuses_what_makes_no_sense(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for words, what in [
        ((), "--voc DIR, --coco DIR or both"),
        (("--voc", tmp_path / "full"), "not an empty folder"),
        (("--voc", tmp_path / "file"), "not an empty folder"),
        (("--voc", tmp_path / "new", "--coco", tmp_path / "new/coco"), "lies in the other"),
        (("--voc", tmp_path / "new", "--train", 0), "--train 0"),
        (("--voc", tmp_path / "new", "--val", -1), "--val -1"),
        (("--voc", tmp_path / "new", "--seed", -1), "--seed -1"),
    ]:
        with pytest.raises(UserError, match=what):
            call(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "set").mkdir()
    call("--coco", tmp_path / "set", "--train", 1, "--val", 1)
    assert len(open_coco(tmp_path / "set", "train2017")) == 1
