"""What the preflight calls odd, changed, repeated and out of balance."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from simsiam.data import check
from simsiam.data.check import balance, changed, classes_apart, learnt, odd_bits, prints, read_all, repeated, shared
from simsiam.data.index import Index, Strings
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.sources.folder import FolderImages


def encoded(kind, mode="RGB", size=(40, 36), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def sixteen_bit_rgb_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + bytes(12) + b"\0" + bytes(12))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(kind, frames):
    images = [Image.new("RGB", (40, 40), (level, 0, 0)) for level in range(0, 50 * frames, 50)]
    file = io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "bits"),
    [
        ("a.JPEG", encoded("JPEG"), 0),
        ("a.jpg", encoded("JPEG", "CMYK"), check.CMYK),
        ("a.jpg", encoded("JPEG", "L"), check.GRAY),
        ("a.JPEG", encoded("PNG"), check.NOT_JPEG | check.EXTENSION),
        ("a.png", encoded("JPEG"), check.EXTENSION),
        ("a.PNG", encoded("PNG"), check.NOT_JPEG),
        ("a.png", encoded("PNG", "I;16"), check.NOT_JPEG | check.GRAY | check.SIXTEEN_BIT),
        ("a.png", sixteen_bit_rgb_png(), check.NOT_JPEG | check.SIXTEEN_BIT),
        ("a.tif", encoded("TIFF", "I;16"), check.NOT_JPEG | check.GRAY | check.SIXTEEN_BIT),
        ("a.tiff", encoded("TIFF"), check.NOT_JPEG),
        ("a.gif", animation("GIF", 3), check.NOT_JPEG | check.ANIMATED),
        ("a.gif", animation("GIF", 1), check.NOT_JPEG),
        ("a.webp", animation("WEBP", 2), check.NOT_JPEG | check.ANIMATED),
        ("no-extension", encoded("PNG"), check.NOT_JPEG),
        ("a.jpg", b"This is not an image.", 0),
        ("a.jpg", b"", 0),
        ("a.png", encoded("PNG")[:20], 0),
    ],
)
def test_what_is_odd_about_a_file(name, data, bits):
    assert odd_bits(name, data) == bits


@pytest.fixture
def folder(tmp_path):
    for name, data in {
        "a/0.jpg": encoded("JPEG"),
        "a/1.jpg": encoded("JPEG", size=(31, 200)),
        "a/2.jpg": encoded("JPEG", size=(300, 300))[:500],
        "b/3.jpg": encoded("JPEG", "CMYK"),
        "b/4.jpg": encoded("JPEG"),
        "b/5.jpg": b"text",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return FolderImages(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_finds_all_there_is_to_find(folder, workers):
    found = read_all(folder, workers, show_progress=False)
    assert set(found.bad) == {2, 5}
    assert "not an image" in found.bad[5]
    assert found.odd.tolist() == [0, check.TINY, 0, check.CMYK, 0, 0]
    assert found.index.pixels[:2].tolist() == [[36, 40], [200, 31]]
    assert found.index.byte_lengths.tolist() == [len(folder.read_bytes(sample)) for sample in range(6)]
    assert found.index.checksums[0] == zlib.crc32(folder.read_bytes(0))
    assert [group.tolist() for group in repeated(prints(folder, found.index))] == [[0, 4]]


def index(lengths, checksums):
    count = len(lengths or ["", ""])
    return Index(
        names=Strings.of(map(str, range(count))),
        labels=np.zeros(count, np.int64),
        classes=("a",),
        byte_lengths=None if lengths is None else np.array(lengths, np.int64),
        pixels=None if lengths is None else np.array([[length, 1] for length in lengths], np.int32),
        checksums=None if lengths is None else np.array(checksums, np.uint32),
    )


def test_changed_files_are_those_read_both_times_with_other_bytes():
    before = index([5, 5, 5, -1, 5], [1, 1, 1, 0, 1])
    now = index([5, 5, 6, 5, -1], [1, 2, 1, 1, 0])
    assert changed(before, now).tolist() == [1, 2]
    assert changed(index(None, None), index([5, 5], [1, 2])).tolist() == []


@pytest.mark.parametrize(("take_in", "checksums"), [(False, [1, 1, 1, 4, 1]), (True, [1, 2, 3, 4, 1])])
def test_facts_of_a_file_that_cannot_be_read_stay_and_changed_ones_are_taken_in_when_asked(take_in, checksums):
    before = index([5, 5, 5, -1, 5], [1, 1, 1, 0, 1])
    now = index([5, 5, 6, 7, -1], [1, 2, 3, 4, 0])
    kept = learnt(before, now, take_in=take_in)
    assert kept.checksums.tolist() == checksums
    assert kept.byte_lengths.tolist() == [5, 5, 6 if take_in else 5, 7, 5]
    assert kept.pixels[:, 0].tolist() == kept.byte_lengths.tolist()
    assert learnt(index(None, None), now, take_in=take_in) is now


def test_repeated_contents_need_the_same_length_and_checksum():
    of = prints(None, index([5, 5, 6, 5, -1, -1, 6, 5], [1, 2, 1, 1, 0, 0, 1, 1]))
    assert [group.tolist() for group in repeated(of)] == [[0, 3, 7], [2, 6]]
    assert repeated(prints(None, index([-1, -1], [0, 0]))) == []
    assert repeated(prints(None, index([3, 4], [0, 0]))) == []


def test_contents_of_one_set_in_another():
    train = prints(None, index([5, 5, 6, -1], [1, 1, 9, 0]))
    val = prints(None, index([7, -1, 5, 6, 6], [1, 0, 1, 9, 9]))
    assert list(shared(train, val)) == [(0, 2), (2, 3), (2, 4)]
    nothing = prints(None, index([-1, -1], [0, 0]))
    assert list(shared(nothing, val)) == list(shared(train, nothing)) == []


def arrays(images, labels, classes):
    return ArrayImages(np.array(images, np.uint8).reshape(-1, 1, 1, 3), np.array(labels), classes, "x")


def test_arrays_are_told_apart_by_their_pixels():
    of = prints(arrays([[1, 2, 3], [4, 5, 6], [1, 2, 3]], [0, 0, 0], ["a"]), None)
    assert [group.tolist() for group in repeated(of)] == [[0, 2]]


def test_balance_names_the_smallest_the_middle_and_the_largest_class():
    images = arrays([[0, 0, 0]] * 8, [2, 2, 2, 2, 1, 0, 0, -1], ["a", "b", "c"])
    assert balance(images) == (("b", 1), ("a", 2), ("c", 4))
    assert balance(arrays([[0, 0, 0]], [-1], [])) is None
    assert balance(arrays([[0, 0, 0]], [0], ["a", "b"])).fewest == ("b", 0)


def test_classes_are_compared_by_name_and_only_where_they_have_images():
    train = arrays([[0, 0, 0]] * 3, [0, 1, 2], ["a", "b", "c"])
    val = arrays([[0, 0, 0]] * 2, [2, 0], ["c", "b", "z"])
    assert classes_apart(train, val) == (["a", "b"], ["z"])
    assert classes_apart(train, train) == ([], [])


def test_an_index_of_another_pass_does_not_change_the_names(folder):
    found = read_all(folder, 0, show_progress=False)
    before = replace(found.index, checksums=found.index.checksums + np.uint32(1))
    assert learnt(before, found.index, take_in=True).names is found.index.names
    assert len(changed(before, found.index)) == 6
