"""Indexes of folders between runs: kept where they can be trusted, made anew where anything changed."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from simsiam.data import index_cache
from simsiam.data.index import read_index, write_index
from simsiam.data.index_cache import folder_index, keep_facts
from simsiam.data.open import open_images
from simsiam.data.sources import folder
from simsiam.data.sources.folder import FolderImages, scan
from simsiam.data.survey import survey
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.settings.tree import Run
from tests.ranks import run_ranks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scans(monkeypatch):
    """The roots that have been listed, one entry a time."""
    made = []
    monkeypatch.setattr(index_cache, "scan", lambda root: made.append(root) or scan(root))
    return made


def add(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / path)
    return root


def settle(root, seconds=10):
    """As if the folders had been left alone for so long."""
    then = time.time() - seconds
    for path, _, _ in os.walk(root):
        os.utime(path, (then, then))
    return root


def files(root):
    return list(folder_index(root).names)


@pytest.fixture
def root(tmp_path):
    return settle(add(tmp_path / "images", "a/1.png", "a/deep/er/2.png", "b/3.png"))


def test_a_settled_folder_is_listed_once(root, scans):
    first, second = folder_index(root), folder_index(root)
    assert len(scans) == 1
    assert list(second.names) == list(first.names) == ["a/1.png", "a/deep/er/2.png", "b/3.png"]
    assert second.labels.tolist() == [0, 0, 1]
    assert second.classes == ("a", "b")
    assert second.byte_lengths is None


def test_a_relative_path_or_a_link_means_the_same_folder(root, scans, monkeypatch, tmp_path):
    folder_index(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    assert files(tmp_path / "link") == files(type(root)("images")) == files(root)
    assert len(scans) == 1


CHANGES = {
    "a file added": lambda root: add(root, "b/4.png"),
    "a file added in a deep folder": lambda root: add(root, "a/deep/er/4.png"),
    "a file removed": lambda root: (root / "a" / "1.png").unlink(),
    "a file renamed": lambda root: (root / "a" / "1.png").rename(root / "a" / "9.png"),
    "a file moved to another class": lambda root: (root / "a" / "1.png").rename(root / "b" / "1.png"),
    "a class added": lambda root: add(root, "c/1.png"),
    "a class removed": lambda root: shutil.rmtree(root / "b"),
    "a class renamed": lambda root: (root / "b").rename(root / "z"),
    "a folder added in a class": lambda root: add(root, "b/new/5.png"),
    "a deep folder removed": lambda root: shutil.rmtree(root / "a" / "deep"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(root, scans, change):
    before = files(root)
    change(root)
    assert files(root) == list(scan(root).index.names) != before
    assert len(scans) == 2
    settle(root, seconds=5)
    for _ in range(2):
        assert files(root) == list(scan(root).index.names)
    assert len(scans) == 3  # kept again


def test_a_folder_that_has_just_changed_is_not_kept(root, scans, cache):
    settle(root, seconds=0)
    folder_index(root)
    folder_index(root)
    assert len(scans) == 2
    assert not list(cache.rglob("*.npz"))
    settle(root, seconds=1.5)
    os.utime(root / "a" / "deep", (1, 1))
    folder_index(root)
    assert not list(cache.rglob("*.npz"))
    settle(root, seconds=2.5)
    folder_index(root)
    folder_index(root)
    assert len(scans) == 4


def test_a_change_within_the_tick_of_the_listing_is_noticed_later(root, scans):
    """A file that comes just after its folder was listed, in the same tick of the clock, so with the same time."""
    now = time.time()
    os.utime(root / "b", (now, now))
    folder_index(root)
    add(root, "b/4.png")
    os.utime(root / "b", (now, now))
    assert files(root) == ["a/1.png", "a/deep/er/2.png", "b/3.png", "b/4.png"]


def test_roots_do_not_mix(root, tmp_path, scans):
    other = settle(add(tmp_path / "others", "x/1.png"))
    for _ in range(2):
        assert files(root) == ["a/1.png", "a/deep/er/2.png", "b/3.png"]
        assert files(other) == ["x/1.png"]
    assert scans == [root, other]


def learn(root):
    index = folder_index(root)
    index, _ = survey(FolderImages(root, index=index), index.unread(), 0, decoding=False, show_progress=False)
    keep_facts(root, index)
    return index


def test_what_was_read_is_kept(root, scans):
    learnt = learn(root)
    kept = folder_index(root)
    assert len(scans) == 1
    assert kept.unread().tolist() == []
    for fact in ("byte_lengths", "pixels", "checksums"):
        assert np.array_equal(getattr(kept, fact), getattr(learnt, fact))


def test_what_was_read_is_carried_over_and_the_new_is_listed(root):
    learnt = learn(root)
    add(root, "a/2.png")
    (root / "b" / "3.png").rename(root / "b" / "0.png")
    for seconds in (0, 10):
        settle(root, seconds)
        index = folder_index(root)
        assert list(index.names) == ["a/1.png", "a/2.png", "a/deep/er/2.png", "b/0.png"]
        assert index.unread().tolist() == [1, 3]
        assert index.byte_lengths.tolist() == [learnt.byte_lengths[0], -1, learnt.byte_lengths[1], -1]
        assert index.pixels.tolist() == [[3, 4], [0, 0], [3, 4], [0, 0]]
        assert index.checksums.tolist() == [learnt.checksums[0], 0, learnt.checksums[1], 0]
    assert learn(root).unread().tolist() == []
    assert folder_index(root).unread().tolist() == []


def test_facts_of_other_files_are_not_kept(root):
    index = folder_index(root)
    learnt, _ = survey(FolderImages(root, index=index), index.unread(), 0, decoding=False, show_progress=False)
    add(root, "c/1.png")
    settle(root)
    folder_index(root)
    keep_facts(root, learnt)
    assert folder_index(root).unread().tolist() == [0, 1, 2, 3]


def test_a_kept_index_that_is_damaged_or_of_another_version_is_made_anew(root, scans, cache, monkeypatch):
    folder_index(root)
    (path,) = cache.rglob("*.npz")
    stored = path.read_bytes()
    flipped = bytearray(stored)
    flipped[stored.index(b"a/1.png")] ^= 1
    for damaged in (b"", b"text", stored[: len(stored) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        assert files(root) == ["a/1.png", "a/deep/er/2.png", "b/3.png"]
        assert read_index(path)[0].classes == ("a", "b")
    assert len(scans) == 5
    with monkeypatch.context() as older:
        older.setattr("simsiam.data.index._VERSION", 0)
        write_index(path, folder_index(root))
    folder_index(root)
    folder_index(root)
    assert len(scans) == 7
    write_index(path, folder_index(root))  # without the folders
    folder_index(root)
    assert len(scans) == 8


def test_a_cache_that_is_missing_or_cannot_be_written_is_harmless(root, scans, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert files(root) == ["a/1.png", "a/deep/er/2.png", "b/3.png"]
    learn(root)
    assert folder_index(root).byte_lengths is None
    assert len(scans) == 4


def test_nothing_is_left_of_an_index_that_a_full_disk_cut_short(root, cache, monkeypatch):
    def fill(file, index, **_):
        file.write(b"a part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_cache, "write_index", fill)
    assert len(folder_index(root)) == 3
    assert list((cache / "indexes").iterdir()) == []


def test_mistakes_in_a_folder_are_told_and_not_kept(tmp_path, cache):
    with pytest.raises(UserError, match="does not exist"):
        folder_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="No image"):
        folder_index(tmp_path / "empty")
    assert not cache.exists()


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    with monkeypatch.context() as refusing:
        refusing.setattr(os, "scandir", refuse)
        with pytest.raises(UserError, match=r"a/deep cannot be listed \(Permission denied\); make it readable or move"):
            scan(root)
    (root / "a" / "up").symlink_to(root)
    with pytest.raises(UserError, match=r"a/up/a/up/.* cannot be listed \(Too many levels of symbolic links\)"):
        scan(root)


# On several ranks.


def _open_on_a_rank(settings):
    """Names, labels, classes and shapes of the images on a rank, where none but rank 0 may look into the folder."""
    rank = dist.get_rank()
    if rank:
        index_cache.scan = index_cache._read = folder.scan = _refuse  # this process is the rank's own
    opened = open_images(settings, "pretrain", Runtime(rank, 2, rank, torch.device("cpu")))
    readable = [tuple(opened.read(sample).shape) for sample in range(len(opened))]
    return [opened.name(sample) for sample in range(len(opened))], opened.labels, opened.classes, readable


def _refuse(_):
    raise AssertionError("only rank 0 looks into the folder")


@pytest.mark.parametrize("subset", ["", "0.5"])
def test_only_rank_0_lists_a_folder_and_all_ranks_get_the_same(tmp_path, subset):
    root = add(tmp_path / "data", *(f"train/{name}/{number}.png" for name in "ab" for number in range(4)))
    first, second = run_ranks(2, _open_on_a_rank, Run(data=str(root), subset=subset, workers=0))
    assert first[0] == second[0]
    assert len(first[0]) == (4 if subset else 8)
    assert np.array_equal(first[1], second[1])
    assert second[1].dtype == np.int64
    assert first[2:] == second[2:]


def _error_on_a_rank(settings):
    try:
        _open_on_a_rank(settings)
    except UserError as error:
        return str(error)


def test_a_mistake_is_the_same_sentence_on_all_ranks(tmp_path):
    root = add(tmp_path / "data", "train/a/1.png")
    errors = run_ranks(2, _error_on_a_rank, Run(data=str(root), subset="half", workers=0))
    assert errors[0] == errors[1]
    assert "--subset half is neither" in errors[0]
