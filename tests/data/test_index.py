"""What a set holds, in flat arrays: right, small on disk, quick at ImageNet's size and not copied into workers."""

import io
import os
import pickle
import re
import time

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from simsiam.data.index import Index, Strings, read_index, write_index
from simsiam.data.loader_workers import as_is
from simsiam.errors import UserError

WORDS = ["a/1.png", "", "kätzchen/ü.png", "a/\udcff\udcfe.png", "日本/本.jpg", "b/2.png"]


def small(**more):
    return Index(Strings.of(["a/1.png", "a/ü.png", "b/\udcff.png"]), np.array([0, 0, 1]), ("a", "b"), **more)


def equal(one, other):
    """Whether two indexes hold the same, of the same types."""
    for name, value in vars(one).items():
        twin = getattr(other, name)
        if isinstance(value, np.ndarray):
            if not (value.dtype == twin.dtype and np.array_equal(value, twin)):
                return False
        elif list(value or ()) != list(twin or ()) or type(value) is not type(twin):
            return False
    return True


@pytest.mark.parametrize("words", [WORDS, ["a", "bc"], ["", ""], []])
def test_strings_of_any_bytes_come_back(words):
    strings = Strings.of(iter(words))
    assert len(strings) == len(words)
    assert list(strings) == words
    assert [strings[row] for row in range(len(words))] == words
    assert strings.ends.dtype == np.int64
    assert strings.blob.tobytes() == b"".join(map(os.fsencode, words))
    assert list(pickle.loads(pickle.dumps(strings))) == words
    for row in (-1, len(words)):
        with pytest.raises(IndexError):
            strings[row]


@pytest.mark.parametrize("rows", [[], [2], [5, 0, 3, 3, 1], [0, 1, 2, 3, 4, 5]])
def test_strings_taken_are_those_of_the_rows(rows):
    taken = Strings.of(WORDS).take(np.array(rows, np.int64))
    assert list(taken) == [WORDS[row] for row in rows]
    assert len(taken.blob) == sum(len(os.fsencode(WORDS[row])) for row in rows)  # nothing of the others is kept


FACTS = {
    "byte_lengths": np.array([10, -1, 30]),
    "pixels": np.array([[1, 2], [0, 0], [5, 6]], np.int32),
    "checksums": np.array([7, 0, 2**32 - 1], np.uint32),
}
SHARDED = {
    "shards": np.array([0, 1, 1], np.int32),
    "offsets": np.array([512, 512, 2**40]),
    "shard_names": ("00.tar", "ü.tar"),
}


def test_a_part_of_an_index_takes_all_it_knows():
    part = small(**FACTS, **SHARDED).take(np.array([2, 0]))
    assert list(part.names) == ["b/\udcff.png", "a/1.png"]
    assert part.labels.tolist() == [1, 0]
    assert part.classes == ("a", "b")
    assert part.byte_lengths.tolist() == [30, 10]
    assert part.pixels.tolist() == [[5, 6], [1, 2]]
    assert part.checksums.tolist() == [2**32 - 1, 7]
    assert part.shards.tolist() == [1, 0]
    assert part.offsets.tolist() == [2**40, 512]
    assert part.shard_names == ("00.tar", "ü.tar")
    assert small().take(np.array([1])).byte_lengths is None


def test_unread_are_the_rows_without_a_length():
    assert small().unread().tolist() == [0, 1, 2]
    assert small(**FACTS).unread().tolist() == [1]


def test_classes_are_numbered_by_another_split():
    index = Index(Strings.of("xyz"), np.array([1, 0, -1]), ("a", "c"))
    other = index.numbered_by(("c", "b", "a"), "val")
    assert other.labels.tolist() == [0, 2, -1]
    assert other.classes == ("c", "b", "a")
    assert index.labels.tolist() == [1, 0, -1]
    assert index.numbered_by(None, "val") is index
    assert index.numbered_by(("a", "c"), "val") is index
    with pytest.raises(UserError, match="val/c has no counterpart among the 2 classes"):
        index.numbered_by(("a", "b"), "val")


@pytest.mark.parametrize("more", [{}, FACTS, SHARDED, {**FACTS, **SHARDED}])
def test_an_index_comes_back_from_its_file(tmp_path, more):
    index = small(**more)
    write_index(tmp_path / "index.npz", index, changed_ns=np.array([1, 2]))
    back, beside = read_index(tmp_path / "index.npz")
    assert equal(index, back)
    assert beside["changed_ns"].tolist() == [1, 2]
    assert back.labels.dtype == np.int64


def test_a_damaged_index_is_never_taken_for_another():
    file = io.BytesIO()
    write_index(file, small(**FACTS))
    stored = file.getvalue()
    for cut in (0, 10, len(stored) // 2, len(stored) - 1):
        assert read_or_none(stored[:cut]) is None
    for place in range(0, len(stored), 5):
        flipped = bytearray(stored)
        flipped[place] ^= 4
        taken = read_or_none(bytes(flipped))
        assert taken is None or equal(taken, small(**FACTS))  # some bytes mean nothing, such as the time in a header


def test_an_index_of_another_version_is_refused(monkeypatch):
    file = io.BytesIO()
    write_index(file, small())
    monkeypatch.setattr("simsiam.data.index._VERSION", -1)
    with pytest.raises(ValueError, match="another version"):
        read_index(io.BytesIO(file.getvalue()))


def read_or_none(stored):
    try:
        return read_index(io.BytesIO(stored))[0]
    except Exception:
        return None


# At ImageNet's size.

IMAGES, CLASSES = 1_281_167, 1000
on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="measures memory by Linux's /proc")


@pytest.fixture(scope="module")
def imagenet():
    """An index of as many images as ImageNet has, with names as long."""
    labels = np.sort(np.arange(IMAGES) % CLASSES)
    wnids = [f"n{label * 9973:08d}" for label in range(CLASSES)]
    names = (f"{wnids[label]}/{wnids[label]}_{number}.JPEG" for number, label in enumerate(labels.tolist()))
    facts = np.arange(IMAGES)
    return Index(
        Strings.of(names),
        labels,
        tuple(wnids),
        byte_lengths=facts,
        pixels=np.stack([facts, facts], axis=1).astype(np.int32),
        checksums=facts.astype(np.uint32),
    )


@on_linux
def test_imagenets_index_takes_little_disk_and_memory(tmp_path, imagenet):
    before = _memory("VmRSS", "status")
    began = time.perf_counter()
    write_index(tmp_path / "index.npz", imagenet)
    written = time.perf_counter() - began
    back, _ = read_index(tmp_path / "index.npz")
    both = time.perf_counter() - began
    grown, size = _memory("VmRSS", "status") - before, (tmp_path / "index.npz").stat().st_size / 2**20
    print(f"\nwritten in {written:.2f} s, read in {both - written:.2f} s, {size:.0f} MiB on disk, RSS +{grown:.0f} MiB")
    assert back.names[IMAGES - 1] == imagenet.names[IMAGES - 1]
    assert size < 90
    assert grown < 120


class _Touching(Dataset):
    def __init__(self, index):
        self.index = index

    def __getitem__(self, task):
        before = _memory("Private_Dirty", "smaps_rollup")
        rows = np.random.default_rng(task).integers(0, IMAGES, 2000).tolist()
        read = sum(len(self.index.names[row]) + int(self.index.labels[row]) for row in rows)
        return os.getpid(), _memory("Private_Dirty", "smaps_rollup") - before, read


@on_linux
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_copy_imagenets_index(imagenet):
    loader = DataLoader(
        _Touching(imagenet),
        sampler=range(8),
        batch_size=None,
        collate_fn=as_is,
        num_workers=4,
        multiprocessing_context="fork",
    )
    reports = list(loader)
    assert len({pid for pid, _, _ in reports}) == 4
    print("\nMiB that became a worker's own in touching 2,000 names:", *(f"{grown:.1f}" for _, grown, _ in reports))
    assert max(grown for _, grown, _ in reports) < 5


def _memory(field, file):
    """MiB of this process."""
    with open(f"/proc/self/{file}") as lines:
        return int(re.search(rf"{field}:\s+(\d+) kB", lines.read())[1]) / 1024
