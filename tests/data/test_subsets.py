"""`--subset`: fractions that everybody gets alike, published lists that are never trusted unchecked, lists of names."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import numpy as np
import pytest
import torch

from simsiam.data import published_lists
from simsiam.data.index import Index, Strings
from simsiam.data.open import open_images
from simsiam.data.published_lists import PUBLISHED, Published
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.sources.folder import FolderImages
from simsiam.data.subsets import balanced, choose, take
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(*counts, unlabelled=False):
    """A set of c0/0.png, c0/1.png, ... with counts[0] images in the first class, and so on; nothing is on disk."""
    names = [f"c{label}/{label}_{number}.png" for label, count in enumerate(counts) for number in range(count)]
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(f"c{label}" for label in range(len(counts)))
    index = Index(Strings.of(names), labels * 0 - 1 if unlabelled else labels, () if unlabelled else classes)
    return FolderImages("/nowhere", index=index)


def arrays(labels, classes="abc", prefix="toy/train"):
    labels = np.array(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    return ArrayImages(images, labels, classes, prefix)


def names(images):
    return [images.name(sample) for sample in range(len(images))]


def counts(images):
    return np.bincount(images.labels, minlength=len(images.classes)).tolist()


def listing(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# Fractions.


def test_a_fraction_is_balanced_and_in_the_order_of_the_set():
    images = folder(100, 100, 100, 100)
    part = choose(images, "0.05")
    assert counts(part) == [5, 5, 5, 5]
    assert part.classes == images.classes
    places = [names(images).index(name) for name in names(part)]
    assert places == sorted(places)
    assert places != list(range(5))


def test_the_remainder_goes_to_different_classes_and_the_total_is_exact():
    part = choose(folder(*[50] * 7), "0.1")  # 35 of 350 would be 5 each; 0.11 is 38
    assert counts(part) == [5] * 7
    part = choose(folder(*[50] * 7), "0.11")
    assert len(part) == round(0.11 * 350)
    assert sorted(counts(part)) == [5] * 4 + [6] * 3
    assert counts(part) != sorted(counts(part), reverse=True)  # not simply the first ones


def test_small_classes_give_all_they_have_and_the_rest_is_shared():
    assert counts(choose(folder(2, 100, 100, 3), "0.5")) == [2, 49, 48, 3]  # round(0.5 * 205) in all


def test_each_class_gives_at_least_one():
    assert counts(choose(folder(10, 10, 10), "0.01")) == [1, 1, 1]
    assert counts(choose(folder(5, 0, 5), "0.01")) == [1, 0, 1]  # a class of the train split that has no image here


def test_a_larger_fraction_contains_a_smaller_one():
    images = folder(3, 40, 17, 90, 1)
    chosen = [set(balanced(images, fraction).tolist()) for fraction in np.linspace(0.01, 1, 60)]
    assert all(small <= large for small, large in pairwise(chosen))
    assert chosen[-1] == set(range(151))


def test_an_unlabelled_set_gives_just_its_fraction():
    part = choose(folder(100, 33, unlabelled=True), "0.1")
    assert len(part) == 13
    assert part.classes == ()


def test_labelled_and_unlabelled_images_each_give_their_fraction():
    part = choose(arrays([0] * 20 + [1] * 20 + [-1] * 300), "0.1")
    assert np.unique(part.labels, return_counts=True)[1].tolist() == [30, 2, 2]


def test_a_fraction_is_the_same_for_everybody_for_ever():
    part = choose(folder(10, 10), "0.3")
    assert names(part) == ["c0/0_1.png", "c0/0_4.png", "c0/0_7.png", "c1/1_2.png", "c1/1_3.png", "c1/1_6.png"]


def test_a_fraction_depends_on_names_and_not_on_the_order_of_the_set():
    images = folder(30, 30, 30)
    turned = take(images, np.arange(90)[::-1])
    assert sorted(names(choose(images, "0.2"))) == sorted(names(choose(turned, "0.2")))


def test_arrays_of_another_split_name_give_the_same_images():
    labels = [0, 1, 2] * 30
    train, pretrain = (choose(arrays(labels, prefix=f"toy/{split}"), "0.1") for split in ("train", "pretrain"))
    assert [n.rpartition("/")[2] for n in names(train)] == [n.rpartition("/")[2] for n in names(pretrain)]
    assert train.read(0).flatten().tolist() == [int(train.name(0).rpartition("/")[2])] * 3


@pytest.mark.parametrize("text", ["0.2", "20%", "20 %", ".2", "2e-1"])
def test_ways_to_write_a_fraction(text):
    assert len(choose(folder(10, 10), text)) == 4


@pytest.mark.parametrize("text", ["1", "1.0", "100%"])
def test_all_of_it(text):
    assert names(choose(folder(10, 7), text)) == names(folder(10, 7))


@pytest.mark.parametrize("text", ["0", "1.5", "-0.1", "nan", "inf", "5%%", "120%", "%", "one"])
def test_what_is_no_fraction_list_or_file_is_refused(text):
    with pytest.raises(UserError, match=r"neither a fraction .* nor a list \(1pct, 10pct\) nor a file"):
        choose(folder(10, 10), text)


def test_the_nearest_list_or_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"did you mean 10pct\?"):
        choose(folder(10), "10pc")
    listing(tmp_path, "0_0.png")
    with pytest.raises(UserError, match=rf"did you mean {tmp_path}/list.txt\?"):
        choose(folder(10), str(tmp_path / "lits.txt"))
    with pytest.raises(UserError, match="neither"):
        choose(folder(10), str(tmp_path))
    with pytest.raises(UserError, match="neither"):
        choose(folder(10), str(tmp_path / "nowhere" / "list.txt"))


# Lists of names.


def test_bare_names_paths_and_longer_paths(tmp_path):
    images = folder(3, 3)
    text = "1_2.png\n\n# a comment\n  c0/0_1.png  \ntrain/c1/1_0.png\r\n./c0/0_0.png\n/data/imagenet/train/c1/1_1.png"
    part = choose(images, listing(tmp_path, text))
    assert names(part) == ["c0/0_0.png", "c0/0_1.png", "c1/1_0.png", "c1/1_1.png", "c1/1_2.png"]
    assert part.classes == images.classes
    assert part.labels.tolist() == [0, 0, 1, 1, 1]


def test_names_of_arrays(tmp_path):
    part = choose(arrays([0, 1, 2, 0, 1]), listing(tmp_path, "toy/train/4\n1\ntoy/pretrain/2 2\n"))
    assert names(part) == ["toy/train/1", "toy/train/2", "toy/train/4"]
    assert part.read(2).flatten().tolist() == [4, 4, 4]


def test_an_exact_path_wins_over_a_bare_name(tmp_path):
    index = Index(Strings.of(["a/x.png", "b/x.png", "b/y.png"]), np.array([0, 1, 1]), ("a", "b"))
    images = FolderImages("/nowhere", index=index)
    assert names(choose(images, listing(tmp_path, "train/b/x.png"))) == ["b/x.png"]
    flat = FolderImages("/nowhere", index=Index(Strings.of(["x.png", "y.png"]), np.array([-1, -1]), ()))
    assert names(choose(flat, listing(tmp_path, "a/x.png 7\nb/y.png 7"))) == ["x.png", "y.png"]


def test_spaces_bytes_and_a_byte_order_mark(tmp_path):
    known = ["a/my cat 3", "a/my cat.png", "b/kätzchen.png", "b/\udcff.png", "b/two  spaces .png"]
    images = FolderImages("/nowhere", index=Index(Strings.of(known), np.array([0, 0, 1, 1, 1]), ("a", "b")))
    text = b"\xef\xbb\xbfmy cat 3\nmy cat.png\t0\nk\xc3\xa4tzchen.png 1\nb/\xff.png\ntwo  spaces .png    1\n"
    assert len(choose(images, listing(tmp_path, text))) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0_0.png\n0_7.png\nx.png", r"none of the 6 training images has: 2 of 3 in the list .*line 2, '0_7.png'; corr"),
        ("# only\n\n", "names no image; write one"),
        ("", "names no image"),
        ("0_0.png\n#\nc0/0_0.png\n", r"more than once: 1 of 2 in the list .*list.txt.* line 3, 'c0/0_0.png'; remove"),
        (
            "c1/1_0.png 3\n0_0.png 4\n0_1.png 3",
            r"contradict .* line 3, '0_1.png 3', is of class c0, but on line 1 3 is",
        ),
        (
            "c1/1_0.png 3\n1_1.png 4",
            r"contradict .* line 2, '1_1.png 4', is of class c1, which is 3 on line 1; correct",
        ),
    ],
)
def test_a_mistake_in_a_list_is_named_with_its_line(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        choose(folder(3, 3), listing(tmp_path, text))


def test_a_name_that_several_images_have_is_refused(tmp_path):
    index = Index(Strings.of(["a/x.png", "b/x.png", "b/y.png"]), np.array([0, 1, 1]), ("a", "b"))
    images = FolderImages("/nowhere", index=index)
    with pytest.raises(UserError, match=r"several images have: 1 of 2 .* line 2, 'x.png 0'; write them with their f"):
        choose(images, listing(tmp_path, "y.png 1\nx.png 0"))


def test_labels_may_be_numbered_otherwise_or_missing(tmp_path):
    images = folder(3, 3)
    assert len(choose(images, listing(tmp_path, "c0/0_0.png 77\nc0/0_1.png 77\n1_0.png 0\n1_1.png\n1_2.png -1"))) == 5
    assert len(choose(folder(3, 3, unlabelled=True), listing(tmp_path, "0_0.png 1\n0_1.png 2\n1_0.png 2"))) == 3


def test_a_fraction_or_a_list_wins_over_a_file_called_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.5").write_text("0_0.png")
    (tmp_path / "1.5").write_text("0_0.png")
    assert [len(choose(folder(4), text)) for text in ("0.5", "./0.5", "1.5")] == [2, 1, 1]


# Published lists.


def publish(monkeypatch, url, data):
    monkeypatch.setitem(PUBLISHED, "1pct", Published(url, hashlib.sha256(data).hexdigest()))


LIST = b"0_0.png\n1_1.png\n"


def test_a_published_list_is_fetched_once_and_checked_again(tmp_path, cache, monkeypatch):
    source = tmp_path / "1percent.txt"
    source.write_bytes(LIST)
    publish(monkeypatch, source.as_uri(), LIST)
    assert names(choose(folder(2, 2), "1pct")) == ["c0/0_0.png", "c1/1_1.png"]
    kept = cache / "subsets" / "1percent.txt"
    assert kept.read_bytes() == LIST
    kept.write_bytes(b"0_0.png\n1_0.png\n")  # changed: fetched again
    assert names(choose(folder(2, 2), "1pct")) == ["c0/0_0.png", "c1/1_1.png"]
    assert kept.read_bytes() == LIST
    source.unlink()
    assert len(choose(folder(2, 2), "1pct")) == 2
    assert [path.name for path in kept.parent.iterdir()] == ["1percent.txt"]


def test_a_wrong_hash_is_refused_and_nothing_stays(tmp_path, cache, monkeypatch):
    (tmp_path / "1percent.txt").write_bytes(LIST + b"1_0.png\n")
    publish(monkeypatch, (tmp_path / "1percent.txt").as_uri(), LIST)
    with pytest.raises(UserError, match=r"is not the published list .*SHA-256 .*put it at .*subsets/1percent.txt"):
        choose(folder(2, 2), "1pct")
    assert not list(cache.rglob("*.txt*"))


def test_offline_says_the_url_and_the_path(cache, monkeypatch):
    publish(monkeypatch, "http://127.0.0.1:9/lists/1percent.txt", LIST)
    place = cache / "subsets" / "1percent.txt"
    with pytest.raises(
        UserError, match=f"cannot be fetched from http://127.0.0.1:9/lists/1percent.txt .*put it at {place}"
    ):
        choose(folder(2, 2), "1pct")
    place.parent.mkdir(parents=True)
    place.write_bytes(LIST[:-5])
    with pytest.raises(UserError, match="in place of the file there, which is not the published one"):
        choose(folder(2, 2), "1pct")
    place.write_bytes(LIST)
    assert len(choose(folder(2, 2), "1pct")) == 2


def test_a_download_cut_short_is_refused_and_nothing_stays(cache, monkeypatch):
    class CutShort(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(LIST)))
            self.end_headers()
            self.wfile.write(LIST[:5])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), CutShort)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/1percent.txt", LIST)
        with pytest.raises(UserError, match="cannot be fetched"):
            choose(folder(2, 2), "1pct")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not list(cache.rglob("*"))


def test_a_cache_that_cannot_be_written_costs_only_the_download(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "file"))
    (tmp_path / "1percent.txt").write_bytes(LIST)
    publish(monkeypatch, (tmp_path / "1percent.txt").as_uri(), LIST)
    assert len(choose(folder(2, 2), "1pct")) == 2


def test_nothing_is_left_of_a_list_that_a_full_disk_cut_short(tmp_path, cache, monkeypatch):
    def fill(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    (tmp_path / "1percent.txt").write_bytes(LIST)
    publish(monkeypatch, (tmp_path / "1percent.txt").as_uri(), LIST)
    monkeypatch.setattr(type(tmp_path), "write_bytes", fill)
    assert len(choose(folder(2, 2), "1pct")) == 2
    assert list((cache / "subsets").iterdir()) == []


def test_the_published_lists_are_those_of_simclr():
    assert {name: (p.url.rpartition("/")[2], p.sha256[:8]) for name, p in published_lists.PUBLISHED.items()} == {
        "1pct": ("1percent.txt", "71e82a48"),
        "10pct": ("10percent.txt", "6d09de11"),
    }


# Through the settings.


def test_a_run_takes_the_subset_for_training_and_all_of_val(monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    settings = parse(
        Pretrain, ["--data", "digits", "--subset", "0.1", "--device", "cpu"], recipe="quickstart", prog="pretrain.py"
    )
    runtime = Runtime(0, 1, 0, torch.device("cpu"))
    for split in ("pretrain", "train"):
        part = open_images(settings, split, runtime)
        assert len(part) == round(0.1 * 1437)
        assert max(counts(part)) - min(counts(part)) == 1
    assert len(open_images(settings, "val", runtime)) == 360
