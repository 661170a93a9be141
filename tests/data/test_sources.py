"""Built-in datasets and the way from `--data` to a split."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.datasets import has_split, open_dataset
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.sources.binaries import cifar10
from simsiam.errors import UserError


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.delenv("SIMSIAM_CACHE", raising=False)


def random_bytes(*shape: int, key: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[3, key])).integers(0, 256, shape, dtype=np.uint8)


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]):
        write_pickle(folder / name, {"data": random_bytes(4, 3072, key=number), "labels": [number, 7, 8, 9]})
    write_pickle(folder / "batches.meta", {"label_names": [f"class{label}" for label in range(10)]})
    return root


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_arrays_are_an_image_set():
    pixels = random_bytes(2, 4, 5, 3)
    images = ArrayImages(pixels, np.array([1, -1]), ["a", "b"], "toy/train")
    assert len(images) == 2
    assert images.name(1) == "toy/train/1"
    assert torch.equal(images.read(1), torch.from_numpy(pixels[1]).permute(2, 0, 1))
    images.read(1).zero_()
    assert np.array_equal(images.images, pixels)
    with pytest.raises(ValueError, match="uint8"):
        ArrayImages(pixels.astype(np.float32), np.array([1, -1]), [], "toy")
    with pytest.raises(ValueError, match="labels"):
        ArrayImages(pixels, np.array([1]), [], "toy")


def test_cifar10_in_the_format_of_torchvision(tmp_path):
    train = open_dataset(f"cifar10:{write_cifar10(tmp_path)}", "train")
    assert train.images.shape == (20, 32, 32, 3)
    assert train.labels.tolist() == [0, 7, 8, 9, 1, 7, 8, 9, 2, 7, 8, 9, 3, 7, 8, 9, 4, 7, 8, 9]
    assert train.classes[3] == "class3"
    assert np.array_equal(train.read(5).numpy(), random_bytes(4, 3072, key=1)[1].reshape(3, 32, 32))
    val = open_dataset(f"cifar10:{tmp_path}", "val")
    assert val.labels.tolist() == [5, 7, 8, 9]
    assert val.name(0) == "cifar10/val/0"
    assert np.array_equal(open_dataset(f"cifar10:{tmp_path}", "pretrain").images, train.images)


def test_cifar10_equals_torchvision_reader(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    theirs, ours = CIFAR10(write_cifar10(tmp_path)), cifar10(tmp_path, "train")
    assert np.array_equal(theirs.data, ours.images)
    assert theirs.targets == ours.labels.tolist()


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for number, name in enumerate(["train", "test"]):
        content = {
            "data": random_bytes(3, 3072, key=number),
            "fine_labels": [99, 0, number],
            "coarse_labels": [0, 0, 0],
        }
        write_pickle(folder / name, content)
    write_pickle(folder / "meta", {"fine_label_names": [f"c{label}" for label in range(100)]})
    val = open_dataset(f"cifar100:{tmp_path}", "val")
    assert val.labels.tolist() == [99, 0, 1]
    assert len(val.classes) == 100


def test_cifar_written_by_python_2(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert np.array_equal(cifar10(tmp_path, "val").read(0).numpy().ravel(), random_bytes(4, 3072, key=5)[0])


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    write_pickle(write_cifar10(tmp_path) / "cifar-10-batches-py" / "test_batch", {"data": Harm(), "labels": []})
    with pytest.raises(UserError, match=r"test_batch is damaged .*mkdir"):
        cifar10(tmp_path, "val")
    assert not (tmp_path / "harm").exists()


def test_damaged_cifar_is_named(tmp_path):
    path = write_cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="data_batch_3 is damaged"):
        cifar10(tmp_path, "train")


def test_stl10(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    train, unlabeled = random_bytes(2, 3, 96, 96), random_bytes(3, 3, 96, 96, key=1)
    train.tofile(folder / "train_X.bin")
    np.array([1, 10], dtype=np.uint8).tofile(folder / "train_y.bin")
    unlabeled.tofile(folder / "unlabeled_X.bin")
    pretrain = open_dataset(f"stl10:{tmp_path}", "pretrain")
    assert pretrain.labels.tolist() == [0, 9, -1, -1, -1]
    assert np.array_equal(pretrain.read(0).numpy(), train[0].transpose(0, 2, 1))
    assert np.array_equal(pretrain.read(4).numpy(), unlabeled[2].transpose(0, 2, 1))
    assert open_dataset(f"stl10:{tmp_path}", "train").labels.tolist() == [0, 9]
    with pytest.raises(UserError, match=r"test_X.bin is missing.*--download"):
        open_dataset(f"stl10:{tmp_path}", "val")
    (folder / "train_X.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match="train_X.bin is damaged"):
        open_dataset(f"stl10:{tmp_path}", "train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_missing_binaries_ask_for_download(name, tmp_path):
    with pytest.raises(UserError, match="--download"):
        open_dataset(f"{name}:{tmp_path}", "train")


def test_binaries_are_looked_for_in_data_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(write_cifar10(tmp_path / "elsewhere")))
    assert len(open_dataset("cifar10", "val")) == 4
    monkeypatch.setenv("DATA", "cifar10")
    with pytest.raises(UserError, match="home/.cache/simsiam"):
        open_dataset("cifar10", "val")


def test_digits_are_split_once_and_for_all():
    train, val = open_dataset("digits", "train"), open_dataset("digits", "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.images.shape[1:] == (32, 32, 3)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert set(train.labels) == set(val.labels) == set(range(10))
    assert np.array_equal(open_dataset("digits", "pretrain").images, train.images)


def test_folder_with_splits(tmp_path):
    for path in ["train/b/1.png", "train/a/1.png", "test/b/1.png"]:
        write_image(tmp_path / path)
    train = open_dataset(str(tmp_path), "pretrain")
    assert train.classes == ("a", "b")
    assert has_split(str(tmp_path), "val")
    assert open_dataset(str(tmp_path), "val", classes=train.classes).labels.tolist() == [1]


def test_folder_without_splits(tmp_path):
    write_image(tmp_path / "a/1.png")
    assert open_dataset(str(tmp_path), "train").classes == ("a",)
    assert not has_split(str(tmp_path), "val")
    with pytest.raises(UserError, match="no validation images"):
        open_dataset(str(tmp_path), "val")


def test_val_without_train_is_not_taken_for_a_class(tmp_path):
    write_image(tmp_path / "val/a/1.png")
    with pytest.raises(UserError, match="no train"):
        open_dataset(str(tmp_path), "train")


def test_a_built_in_name_wins_over_a_folder(tmp_path, monkeypatch):
    write_image(tmp_path / "digits/a/1.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("digits", "val")) == 360
    assert len(open_dataset("./digits", "train")) == 1


@pytest.mark.parametrize("data", ["nowhere", "imagenet", "", "cifar10:", "shapes:x"])
def test_unknown_data_is_one_sentence(data):
    with pytest.raises(UserError) as caught:
        has_split(data, "val")
    assert data.partition(":")[0] in str(caught.value)
    assert "cifar10" in str(caught.value)
