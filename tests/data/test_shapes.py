"""The generated dataset: the same bytes each time, whole or absent, balanced."""

import hashlib
import multiprocessing

import numpy as np
import pytest

from simsiam.data.datasets import has_split, open_dataset
from simsiam.data.sources.shapes import CLASSES, class_pattern, make_shapes
from simsiam.errors import UserError


def digest(root):
    hashes = hashlib.sha256()
    for path in sorted(root.rglob("*.jpg")):
        hashes.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return hashes.hexdigest()


def test_the_same_bytes_each_time_and_others_for_another_seed(tmp_path):
    for name, seed in [("one", 0), ("two", 0), ("three", 1)]:
        make_shapes(tmp_path / name, train=30, val=10, seed=seed)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")


def test_balanced_and_readable(tmp_path):
    make_shapes(tmp_path / "set", train=50, val=20, size=24)
    train, val = open_dataset(str(tmp_path / "set"), "train"), open_dataset(str(tmp_path / "set"), "val")
    assert train.classes == val.classes == CLASSES
    assert np.bincount(train.labels).tolist() == [5] * 10
    assert np.bincount(val.labels).tolist() == [2] * 10
    assert train.read(0).shape == (3, 24, 24)
    assert train.read_bytes(0) != val.read_bytes(0)


def test_processes_at_once_all_succeed(tmp_path):
    root = tmp_path / "cache" / "set"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make_shapes, args=(root, 100, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list(root.rglob("*.jpg"))) == 120
    assert list(root.parent.iterdir()) == [root]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("simsiam.data.sources.shapes.draw", interrupt)
        make_shapes(tmp_path / "set", train=20, val=10)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="SIMSIAM_CACHE"):
        make_shapes(tmp_path, train=10, val=10)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_open_by_name_makes_it_once_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path))
    monkeypatch.setattr("simsiam.data.sources.shapes.make_shapes.__defaults__", (40, 20, 32, 0))
    assert has_split("shapes", "val")
    assert (len(open_dataset("shapes", "pretrain")), len(open_dataset("shapes", "val"))) == (40, 20)
    (root,) = tmp_path.iterdir()
    made = root.stat().st_ino
    assert len(open_dataset("shapes", "train")) == 40
    assert root.stat().st_ino == made


def test_patterns_are_distinct_and_in_range():
    patterns = np.stack([class_pattern(label, 16) for label in range(10)])
    assert patterns.shape == (10, 16, 16, 3)
    assert 0 <= patterns.min() <= patterns.max() <= 1
    for first in range(10):
        for second in range(first):
            assert np.abs(patterns[first] - patterns[second]).mean() > 0.1
