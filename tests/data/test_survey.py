"""The pass that reads every file, and the checksums that it makes: damage is noticed, and nothing is read twice."""

import zlib

import numpy as np
import pytest
from PIL import Image

from simsiam.data import datasets
from simsiam.data.datasets import open_dataset
from simsiam.data.image_set import BadImage
from simsiam.data.index_cache import folder_index, keep_facts
from simsiam.data.loaders.torchvision import TorchvisionLoader
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.data.survey import survey
from simsiam.settings.tree import Run, Views
from tests.data.test_index_cache import settle

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """train/ with good images in a and, in b, a cut JPEG, a text, an empty file and a link that leads nowhere."""
    train = tmp_path / "data" / "train"
    for label, name in enumerate("ab"):
        (train / name).mkdir(parents=True)
        for number in range(80):
            noise = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(train / name / f"{number:02d}.{('png', 'jpg')[label]}")
    whole = (train / "b" / "00.jpg").read_bytes()
    (train / "b" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "b" / "01.jpg").write_text("hello")
    (train / "b" / "02.jpg").write_bytes(b"")
    (train / "b" / "03.jpg").unlink()
    (train / "b" / "03.jpg").symlink_to(train / "nowhere.jpg")
    settle(train.parent)
    return train


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_lengths_pixels_checksums_and_reasons(root, workers, decoding):
    images = FolderImages(root)
    index, bad = survey(images, np.arange(160), workers, decoding=decoding, show_progress=False)
    stored = [b"" if sample == 83 else (root / images.name(sample)).read_bytes() for sample in range(160)]
    assert index.byte_lengths.tolist() == [-1 if sample == 83 else len(stored[sample]) for sample in range(160)]
    assert index.checksums.tolist() == list(map(zlib.crc32, stored))
    heights = [20 + sample % 80 for sample in range(160)]
    assert index.pixels.tolist() == [[0, 0] if s in (81, 82, 83) else [heights[s], 30] for s in range(160)]
    assert (index.byte_lengths.dtype, index.pixels.dtype, index.checksums.dtype) == (np.int64, np.int32, np.uint32)
    assert "No such file" in bad[83]
    assert sorted(bad) == ([80, 81, 82, 83] if decoding else [83])
    if decoding:
        assert "truncated" in bad[80].lower()
        assert "not an image" in bad[81]
        assert "empty" in bad[82]
    assert index.unread().tolist() == [83]  # it is read again next time


def test_only_the_samples_asked_for_are_read(root):
    images = FolderImages(root)
    index, bad = survey(images, np.array([5, 81, 2]), 0, decoding=False, show_progress=False)
    assert np.flatnonzero(index.byte_lengths >= 0).tolist() == [2, 5, 81]
    again = FolderImages(root, index=index)
    index, bad = survey(again, index.unread(), 0, decoding=False, show_progress=False)
    assert index.unread().tolist() == [83]
    assert list(bad) == [83]
    index, bad = survey(again, np.zeros(0, np.int64), 2, decoding=True, show_progress=False)
    assert np.array_equal(index.checksums, again.index.checksums)
    assert bad == {}


def flip_a_bit(path):
    """In the middle of the pixels, where a decoder notices nothing; the folder does not change."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def verified(root):
    return open_dataset(str(root.parent), "train", checksums=True)


def test_a_bit_flipped_after_the_index_was_made_is_noticed_and_counted(root):
    sound = verified(root)
    assert sound.read(90).shape == (3, 30, 30)
    flip_a_bit(root / "b" / "10.jpg")
    open_dataset(str(root.parent), "train").read_bytes(90)  # nothing else notices
    images = verified(root)
    with pytest.raises(BadImage, match="checksum"):
        images.read(90)
    only = images.take(np.array([91, 90, 92]))
    with pytest.raises(BadImage, match="checksum"):
        only.read(1)
    settings = Run(batch_size=3, workers=0, views=Views(size=8))
    loader = TorchvisionLoader(only, Plan(3, 3, 0), settings, 2, "cpu")
    ((crops,),) = loader.steps(0, 1)
    ((sample, reason),) = crops.replaced
    assert sample == 1
    assert "checksum" in reason


def test_a_file_that_was_changed_and_read_anew_is_taken(root):
    verified(root)
    Image.new("RGB", (7, 5)).save(root / "b" / "10.jpg")
    with pytest.raises(BadImage, match="checksum"):
        verified(root).read(90)
    index = folder_index(root)
    index, _ = survey(FolderImages(root, index=index), np.array([90]), 0, decoding=False, show_progress=False)
    keep_facts(root, index)
    assert verified(root).read(90).shape == (3, 5, 7)


def test_checksums_are_made_once(root, monkeypatch):
    (root / "b" / "03.jpg").unlink()
    settle(root)
    read = []
    stored = FolderImages._stored
    monkeypatch.setattr(FolderImages, "_stored", lambda self, sample: read.append(sample) or stored(self, sample))
    open_dataset(str(root.parent), "train")
    assert read == []
    verified(root)
    assert sorted(read) == list(range(159))
    del read[:]
    monkeypatch.setattr(datasets, "survey", None)  # not even asked
    images = verified(root)
    assert read == []
    assert images.read(0).shape == (3, 20, 30)


def test_only_new_files_are_read_for_their_checksums(root, monkeypatch):
    verified(root)
    Image.new("RGB", (7, 5)).save(root / "a" / "00b.png")
    settle(root)
    read = []
    stored = FolderImages._stored
    monkeypatch.setattr(
        FolderImages, "_stored", lambda self, sample: read.append(self.name(sample)) or stored(self, sample)
    )
    images = verified(root)
    assert read == ["a/00b.png", "b/03.jpg"]
    assert images.read(1).shape == (3, 5, 7)


def test_val_is_verified_too_and_keeps_the_numbers_of_train(root):
    val = root.parent / "val" / "b"
    val.mkdir(parents=True)
    Image.new("RGB", (7, 5)).save(val / "1.png")
    settle(val.parent)
    for _ in range(2):
        images = open_dataset(str(root.parent), "val", classes=("a", "b"), checksums=True)
        assert images.labels.tolist() == [1]
        assert images.read(0).shape == (3, 5, 7)
    flip_a_bit(val / "1.png")
    with pytest.raises(BadImage, match="checksum"):
        images.read(0)
