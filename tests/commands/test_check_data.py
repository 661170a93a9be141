"""`simsiam check-data`: every kind of damage is found and named, nothing is lost, and the bottleneck is a sentence."""

import argparse
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from simsiam.commands import check_data
from simsiam.commands.disk_rate import measure_disk
from simsiam.commands.throughput import Account, verdict
from simsiam.data import datasets
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.sources.folder import FolderImages
from simsiam.data.sources.shapes import make_shapes
from simsiam.errors import UserError


@pytest.fixture
def call(capsys):
    """Runs the command and gives what it prints."""

    def run(*words, throughput=False):
        parser = argparse.ArgumentParser()
        check_data.add_arguments(parser)
        words = [*map(str, words), "--workers", "0", *([] if throughput else ["--no-throughput"])]
        capsys.readouterr()
        check_data.run(parser.parse_args(words))
        return capsys.readouterr().out

    return run


def save(path, colour, mode="RGB", size=(48, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def settle(root):
    """Makes the folders look as if nothing had come or gone for an hour; only then is an index kept."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


@pytest.fixture
def data(tmp_path):
    """Six images of train and three of val, all well."""
    root = tmp_path / "set"
    for number in range(6):
        save(root / "train" / "ab"[number // 4] / f"{number}.jpg", (40 * number, 0, 0))
    for number in range(3):
        save(root / "val" / "ab"[number // 2] / f"{number}.jpg", (0, 40 * number, 9))
    settle(root)
    return root


def test_a_set_that_is_well_is_counted(data, call):
    printed = call(data)
    assert "train       6 images, 2 classes, all labelled" in printed
    assert "fewest 2 (b), median 2 (b), most 4 (a)" in printed
    assert "val         3 images" in printed
    assert printed.count("unreadable: none") == printed.count("odd: none") == printed.count("repeated: none") == 2
    assert "the same 2 in train and val" in printed
    assert "no image of val is in train too" in printed
    total = sum(path.stat().st_size for path in (data / "train").rglob("*.jpg"))
    assert f"{total / 1024:.1f} KiB in all, the median file" in printed
    assert "32 to 64                6  ########################################" in printed


def test_unreadable_files_are_named_with_their_reason_and_listed_whole(data, call, tmp_path):
    for number in range(10, 35):
        (data / "train" / "a" / f"{number}.jpg").write_text("hello")
    image = data / "val" / "a" / "0.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    printed = call(data, "--list", tmp_path / "found.tsv")
    assert "unreadable: 25 files" in printed
    assert "a/10.jpg: not an image" in printed
    assert "and 5 more" in printed
    assert "a/34.jpg" not in printed
    assert "unreadable: 1 file\n" in printed
    lines = [line.split("\t") for line in (tmp_path / "found.tsv").read_text().splitlines()]
    unreadable = [(split, name) for finding, split, name, _ in lines if finding == "unreadable"]
    assert unreadable == [*(("train", f"a/{number}.jpg") for number in range(10, 35)), ("val", "a/0.jpg")]
    assert all(note for finding, _, _, note in lines if finding == "unreadable")


def test_strict_refuses_unreadable_files_after_the_report(data, call, capsys):
    assert "unreadable: none" in call(data, "--strict")
    (data / "val" / "b" / "2.jpg").write_bytes(b"")
    assert "unreadable: 1 file" in call(data)
    with pytest.raises(UserError, match=r"1 file of .*b/2.jpg of val; restore or remove") as error:
        call(data, "--strict")
    assert error.value.exit_code == 2
    assert "b/2.jpg: the file is empty" in capsys.readouterr().out


def test_odd_files_are_counted_by_kind_with_an_example(data, call):
    train = data / "train" / "b"
    save(train / "cmyk.jpg", (1, 2, 3, 4), "CMYK")
    save(train / "gray.jpg", 7, "L")
    save(train / "gray2.jpg", 8, "L")
    save(train / "deep.png", 700, "I;16")
    save(train / "liar.jpg", (1, 1, 1), format="PNG")
    save(train / "small.jpg", (2, 2, 2), size=(400, 31))
    frames = [Image.new("RGB", (40, 40), (100 * level, 0, 0)) for level in range(3)]
    frames[0].save(train / "moving.gif", save_all=True, append_images=frames[1:])
    printed = call(data)
    for line in (
        "odd: 3 files not JPEG by content, such as b/deep.png",
        "odd: 1 file with the extension of another format, such as b/liar.jpg",
        "odd: 1 file CMYK, such as b/cmyk.jpg",
        "odd: 3 files gray, such as b/deep.png",
        "odd: 1 file of 16-bit samples, such as b/deep.png",
        "odd: 1 file animated (the first frame counts), such as b/moving.gif",
        "odd: 1 file with a shorter side under 32 pixels, such as b/small.jpg",
    ):
        assert line in printed


def test_repeated_files_are_found_within_a_split_and_across(data, call, tmp_path):
    image = (data / "train" / "a" / "1.jpg").read_bytes()
    for copy in ("train/a/copy.jpg", "train/b/astray.jpg", "val/b/leak.jpg"):
        (data / copy).write_bytes(image)
    printed = call(data, "--list", tmp_path / "found.tsv")
    assert "repeated: 2 images equal to another to the byte, such as a/copy.jpg to a/1.jpg" in printed
    assert "1 of them in more than one class" in printed
    assert "1 image of val in train too:" in printed
    assert "b/leak.jpg of val is a/1.jpg of train" in printed
    assert "in both\tval\tb/leak.jpg\tas a/1.jpg of train" in (tmp_path / "found.tsv").read_text()


def test_classes_of_one_split_alone_are_named(data, call):
    save(data / "train" / "only-train" / "1.jpg", (9, 9, 9))
    save(data / "val" / "zebra" / "1.jpg", (8, 8, 8))
    printed = call(data)
    assert "1 class of train without an image in val:\n              only-train\n" in printed
    assert "1 class of val without an image in train:\n              zebra\n" in printed


def test_images_without_label_are_counted(tmp_path, call):
    save(tmp_path / "loose" / "1.jpg", (1, 2, 3))
    printed = call(tmp_path / "loose")
    assert "train       1 image, 0 classes, 1 without label" in printed
    assert "splits" not in printed


def test_a_file_name_that_is_not_utf8_is_printed(data, call):
    os.rename(data / "train" / "a" / "1.jpg", os.fsencode(data / "train" / "a") + b"/\xff.png")
    assert "a/\\udcff.png" in call(data)


def test_what_the_check_has_read_is_not_read_again_for_checksums(data, call, monkeypatch):
    call(data)

    def survey(*_, **__):
        raise AssertionError("it was read again")

    monkeypatch.setattr(datasets, "survey", survey)
    images = datasets.open_dataset(str(data), "train", checksums=True)
    assert images.verify
    assert images.read(3).shape == (3, 40, 48)


def test_checksums_find_a_changed_byte_and_then_take_it_in(data, call, tmp_path):
    assert "0 files compared with an earlier check, 6 taken in as new" in call(data, "--checksums")
    path = data / "train" / "b" / "4.jpg"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    for _ in range(2):  # only being asked takes the new bytes in
        assert "changed since an earlier check: 1 file; --checksums takes" in call(data)
    with pytest.raises(BadImage, match="checksum"):
        datasets.open_dataset(str(data), "train", checksums=True).read(4)
    printed = call(data, "--checksums", "--list", tmp_path / "found.tsv")
    assert "changed since an earlier check: 1 file; the new checksums are taken in\n              b/4.jpg\n" in printed
    assert "6 files compared with an earlier check, 0 taken in as new" in printed
    assert "changed\ttrain\tb/4.jpg\t" in (tmp_path / "found.tsv").read_text()
    assert "changed" not in call(data, "--checksums")
    assert datasets.open_dataset(str(data), "train", checksums=True).read(4).shape == (3, 40, 48)


def test_what_cannot_be_kept_for_later_is_said(data, call, monkeypatch):
    assert "not kept" not in call(data)
    (data / "file").write_text("")
    monkeypatch.setenv("SIMSIAM_CACHE", str(data / "file"))
    printed = call(data, "--checksums")
    assert f"not kept for later: {data / 'train'} was changed a moment ago, or {data / 'file'} cannot be" in printed


class Packed(EncodedImages):
    """Files as a set that brings its checksums along."""

    def __init__(self, images):
        super().__init__(images.index)
        self._stored = images.read_bytes


def test_images_that_differ_from_the_checksums_they_came_with_are_unreadable(data, call, monkeypatch):
    from simsiam.data.check import read_all

    images = FolderImages(data / "train")
    index = read_all(images, 0, show_progress=False).index
    checksums = index.checksums.copy()
    checksums[2] += 1
    monkeypatch.setattr(
        datasets, "open_dataset", lambda *_, **__: Packed(FolderImages(images.root, index=packed_index))
    )
    monkeypatch.setattr(datasets, "has_split", lambda *_: False)
    packed_index = replace(index, checksums=checksums)
    printed = call("packed")
    assert "checksums: 1 image of 6 not as they were packed" in printed
    assert "a/2.jpg: its checksum is not the index's" in printed


def test_built_in_arrays_have_no_files_to_check(call):
    printed = call("digits")
    assert "train       1,437 images, 10 classes" in printed
    assert "32x32 pixels each, an array in memory: there are no files to check" in printed
    assert "no image of val is in train too" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--list", "/nowhere/at/all.tsv"], r"/nowhere/at/all.tsv cannot be written .*another file"),
        (["--batch-size", "1"], "batch norm needs two"),
        (["--seconds", "0"], "--seconds 0 is no length"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_read(data, call, words, sentence):
    with pytest.raises(UserError, match=sentence):
        call(data, *words)


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
def test_the_throughput_account_measures_every_part_and_ends_in_one_sentence(tmp_path, call, loader):
    make_shapes(tmp_path / "shapes", train=60, val=10)
    printed = call(
        tmp_path / "shapes",
        *("--recipe", "quickstart", "--loader", loader, "--seconds", "0.05", "--batch-size", "8", "--device", "cpu"),
        throughput=True,
    )
    rows = {line.split()[0]: line for line in printed.partition("\n\n")[2].splitlines()}
    assert "resnet8, two 32x32 views, 8 images a step" in rows["account"]
    parts = ["disk", "decode", "crop"] if loader == "torchvision" else []
    for part in (*parts, "augment", "loader", "step", "together"):
        rate, unit = rows[part].split()[1:3]
        assert float(rate.replace(",", "")) > 0
        assert unit in ("pairs/s", "images/s")
    assert ("decode" in rows) == (loader == "torchvision")
    assert rows["bottleneck"].endswith(".")
    assert printed.count("bottleneck") == 1


def test_the_account_of_a_set_that_is_partly_unreadable(data, call):
    for name in ("a/0.jpg", "b/5.jpg"):
        (data / "train" / name).write_text("no image")
    words = ("--recipe", "quickstart", "--loader", "torchvision", "--seconds", "0.02", "--batch-size", "4")
    printed = call(data, *words, "--device", "cpu", throughput=True)
    assert "unreadable: 2 files" in printed
    assert "bottleneck" in printed


@pytest.mark.parametrize("stays", [True, False])
def test_the_disk_is_cold_only_where_files_left_the_page_cache(data, monkeypatch, stays):
    def preadv(*_):
        if not stays:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    read = measure_disk(FolderImages(data / "train"), np.arange(6), workers=2, seconds=0.01)
    assert read.is_cold is not stays
    assert read.readers == 2
    sizes = [path.stat().st_size for path in (data / "train").rglob("*.jpg")]
    assert read.mean_bytes == pytest.approx(np.mean(sizes), rel=0.2)


def test_a_recipe_that_is_unknown_is_named(data, call):
    with pytest.raises(UserError, match="quickstart"):
        call(data, "--recipe", "quickstrat", throughput=True)


FAST = Account(
    disk=1e6, decode=1e5, crop=1e5, augment=1e5, step=1e5, loader=5e4, together=2e4, shares_cores=False
)  # a GPU that waits for nothing much


@pytest.mark.parametrize(
    ("changes", "part", "words"),
    [
        ({"disk": 100}, "disk", "100 images/s"),
        ({"disk": None, "decode": 10, "loader": 20}, "decode", "--workers up to"),
        ({"crop": 10, "loader": 20}, "crop", "--loader dali"),
        ({"augment": 10, "together": 10}, "augment", "blur"),
        ({"step": 10, "together": 10}, "step", "more workers would not"),
        ({"step": 10, "together": 10, "shares_cores": True}, "step", "a GPU"),
        ({"decode": 10, "loader": 5, "together": 5, "shares_cores": True}, "decode", "files of smaller images"),
        ({"decode": None, "crop": None, "loader": 5, "together": 5, "shares_cores": True}, "crop", "would help"),
        ({"disk": 50, "step": 100, "together": 90, "shares_cores": True}, "disk", "local SSD"),
    ],
)
def test_the_bottleneck_is_what_training_waits_for(changes, part, words):
    account = replace(FAST, **changes)
    assert account.bottleneck() == part
    sentence = verdict(account, 0, "cpu" if account.shares_cores else "cuda")
    assert sentence.startswith("bottleneck")
    assert f"{part}: " in sentence
    assert words in sentence
    assert np.isclose(account.seconds()["crop"] + account.seconds().get("decode", 0), 1 / account.loader)


def test_help_does_not_import_torch():
    code = "import sys, simsiam.commands.check_data, simsiam.commands.show_views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_that_no_ending_makes_an_image_are_counted_and_listed(call, data, tmp_path):
    for name in ("train/a/one.avif", "train/b/two.HEIC", "train/b/deep/three", "train/.hidden"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"")
    told = call(data, "--list", tmp_path / "list.tsv")
    assert "left out: 3 files by the ending (.avif, .heic, none), such as a/one.avif" in told
    rows = [line.split("\t") for line in (tmp_path / "list.tsv").read_text().splitlines()]
    assert [row[:3] for row in rows if row[0] == "left out"] == [
        ["left out", "train", name] for name in ("a/one.avif", "b/two.HEIC", "b/deep/three")
    ]
    for name in ("train/a/one.avif", "train/b/two.HEIC", "train/b/deep/three"):
        (data / name).unlink()
    assert "left out" not in call(data)
