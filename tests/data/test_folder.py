"""Folders of images: which files, which numbers, and one clear sentence for each mistake."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from simsiam.data.image_set import BadImage
from simsiam.data.sources.folder import FolderImages
from simsiam.errors import UserError


@pytest.fixture
def add(tmp_path):
    """Writes small images at paths below tmp_path, each of a gray that says which call made it."""
    made = []

    def write(*paths):
        for path in paths:
            made.append(path)
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (len(made),) * 3).save(tmp_path / path)
        return tmp_path

    return write


def names(images):
    return [images.name(sample) for sample in range(len(images))]


def test_classes_and_files_in_the_order_of_names(add):
    images = FolderImages(add("b/2.png", "b/10.PNG", "a/z.jpg", "b/deep/er/1.JPEG", "a/x.webp"))
    assert images.classes == ("a", "b")
    assert names(images) == ["a/x.webp", "a/z.jpg", "b/10.PNG", "b/2.png", "b/deep/er/1.JPEG"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.read(3).tolist() == [[[1] * 4] * 3] * 3
    assert images.read_bytes(3) == (images.root / "b/2.png").read_bytes()


def test_all_extensions_and_nothing_else(add):
    extensions = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"]
    root = add(*(f"a/{extension}.{extension}" for extension in extensions), "a/.hidden.png", ".cache/x.png")
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "classes.csv").write_text("a")
    images = FolderImages(root)
    assert images.classes == ("a",)
    assert len(images) == len(extensions)
    for sample in range(len(images)):
        assert images.read(sample).shape == (3, 3, 4)


def test_images_directly_in_the_root_are_unlabelled(add):
    images = FolderImages(add("2.png", "1.png"))
    assert images.classes == ()
    assert names(images) == ["1.png", "2.png"]
    assert images.labels.tolist() == [-1, -1]


def test_names_that_are_not_ascii_or_not_utf8(add):
    root = add("kätzchen/ü.png", "a/1.png")
    os.rename(root / "a" / "1.png", os.fsencode(root / "a") + b"/\xff.png")
    images = FolderImages(root)
    assert names(images)[1] == "kätzchen/ü.png"
    assert images.read(0).shape == (3, 3, 4)
    assert images.read(1).shape == (3, 3, 4)


def test_links_to_folders_and_files_are_followed(add):
    root = add("store/1.png")
    (root / "view").mkdir()
    (root / "view" / "a").symlink_to(root / "store")
    (root / "view" / "b").mkdir()
    (root / "view" / "b" / "x.png").symlink_to(root / "store" / "1.png")
    assert names(FolderImages(root / "view")) == ["a/1.png", "b/x.png"]


def test_val_classes_are_numbered_by_name(add):
    root = add("train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png")
    train = FolderImages(root / "train")
    val = FolderImages(root / "val", train.classes)
    assert val.classes == ("a", "b", "c")
    assert val.labels.tolist() == [0, 2]


def test_a_val_class_unknown_to_train_is_named(add):
    root = add("val/a/1.png", "val/zebra/1.png")
    with pytest.raises(UserError, match="zebra"):
        FolderImages(root / "val", ("a", "b"))


def test_empty_class_folders_are_named(add):
    root = add("a/1.png")
    (root / "b").mkdir()
    (root / "c").mkdir()
    (root / "c" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"b, c .*fill or remove"):
        FolderImages(root)


def test_loose_images_beside_class_folders_are_named(add):
    with pytest.raises(UserError, match="stray.png"):
        FolderImages(add("a/1.png", "stray.png"))


def test_root_missing_a_file_or_without_images(add):
    root = add("a/1.png")
    (root / "none").mkdir()
    for path, words in [("nowhere", "does not exist"), ("a/1.png", "is a file"), ("none", "No image")]:
        with pytest.raises(UserError, match=words):
            FolderImages(root / path)


def test_a_file_that_vanished_or_is_text_is_a_bad_image(add):
    root = add("a/1.png", "a/2.jpg")
    images = FolderImages(root)
    (root / "a" / "1.png").unlink()
    (root / "a" / "2.jpg").write_text("hello")
    with pytest.raises(BadImage, match="No such file"):
        images.read(0)
    with pytest.raises(BadImage, match="not an image"):
        images.read(1)


def test_a_worker_gets_the_same_set(add):
    images = FolderImages(add("a/1.png", "b/1.png"))
    copy = pickle.loads(pickle.dumps(images))
    assert names(copy) == names(images)
    with pytest.raises(IndexError):
        copy.name(2)
