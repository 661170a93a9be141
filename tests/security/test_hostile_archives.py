"""Archives and shards put nothing outside of their folder, and nothing from outside into a set."""

import os
import tarfile
import urllib.error
import zipfile

import numpy as np
import pytest
import torchvision.datasets
import torchvision.datasets.utils

from simsiam.data.decode import MAX_PIXELS
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index, Strings, write_index
from simsiam.data.sources.binaries import cifar10
from simsiam.data.sources.downloads import unpacking_inside
from simsiam.data.sources.shards import ShardImages, read_shard_index
from simsiam.data.sources.transfer_sets import transfer_set
from simsiam.data.storage import MOST_IMAGE_BYTES
from tests.security import hostile
from tests.security.conftest import refused

ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture
def offline(monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("there is no network")

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fail)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)


def test_the_archives_climb_where_nobody_is_careful(place, canary):
    (place / "unpacked").mkdir()
    for name in ("dots", "symbolic link", "chain of links", "absolute"):
        (place / "x.tar").write_bytes(hostile.climbing_tars(canary)[name])
        # One folder deeper, as nothing may climb out of the test's own.
        with tarfile.open(place / "x.tar") as archive:
            archive.extractall(place / "unpacked", filter="fully_trusted")
        assert canary.exists() or (place / "outside" / canary.name).exists(), name
        canary.unlink(missing_ok=True)


@pytest.mark.usefixtures("offline")
def test_downloaded_archives_that_climb(place, canary, monkeypatch):
    """Even one of the right checksum, which the next test is about."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", None)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "filename", "x.tar")
    for name, data in hostile.climbing_tars(canary).items():
        (place / "x.tar").write_bytes(data)
        refused(lambda: cifar10(place, "train", download=True), name, "download of CIFAR10")
        assert not canary.exists(), name


@pytest.mark.usefixtures("offline")
def test_archives_of_another_checksum_are_not_unpacked(place):
    (place / ARCHIVE).write_bytes(hostile.tar({"cifar-10-batches-py/data_batch_1": b"x"}))
    refused(lambda: cifar10(place, "train", download=True), "archive", "no network")
    assert not (place / "cifar-10-batches-py").exists()


def test_python_is_left_as_it_was():
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    with pytest.raises(ValueError, match="x"), unpacking_inside():
        raise ValueError("x")
    assert tarfile.TarFile.__dict__.get("extraction_filter") == before


def test_zip_files_that_climb(place, canary):
    """torchvision unpacks them by zipfile, which cuts the names down: what climbs lands inside."""
    for name in ("../outside/canary", "/" + str(canary), "a/../../outside/canary", "..\\outside\\canary", "\u2025/x"):
        with zipfile.ZipFile(place / "x.zip", "w") as archive:
            archive.writestr(name, b"x")
        torchvision.datasets.utils.extract_archive(str(place / "x.zip"), str(place / "out"))
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(place / "x.zip", "w") as archive:
        archive.writestr(link, str(canary.parent))
        archive.writestr("link/canary", b"x")
    with pytest.raises(OSError):  # noqa: PT011, of what kind is the system's to say
        torchvision.datasets.utils.extract_archive(str(place / "x.zip"), str(place / "linked"))


def index(**other) -> Index:
    """The index of two images in one shard, or what is wrong with it."""
    values = {
        "names": Strings.of(["a/1.jpg", "a/2.jpg"]),
        "labels": np.zeros(2, np.int64),
        "classes": ("a",),
        "byte_lengths": np.array([9, 9]),
        "shards": np.zeros(2, np.int32),
        "offsets": np.array([512, 1536]),
        "shard_names": ("shard-000000.tar",),
    }
    return Index(**{**values, **other})


INDEXES = {
    **{name: {"shard_names": (name,)} for name in ("../x.tar", "/etc/passwd", "a/../../x", "..", "a\0b", "\ud800")},
    "number for a name": {"shard_names": (3,)},
    "negative offset": {"offsets": np.array([-1, 0])},
    "negative length": {"byte_lengths": np.array([-5, 9])},
    "huge length": {"byte_lengths": np.array([9, 1 << 62])},
    "no such shard": {"shards": np.array([0, 7], np.int32)},
    "shard before the first": {"shards": np.array([0, -1], np.int32)},
    "no such class": {"labels": np.array([0, 4])},
    "labels for some": {"labels": np.zeros(1, np.int64)},
    "names for some": {"names": Strings.of(["a"])},
    "names before the first": {"names": Strings(np.zeros(9, np.uint8), np.array([0, 7, 3]))},
    "names behind the last": {"names": Strings(np.zeros(9, np.uint8), np.array([0, 7, 1 << 40]))},
    "lengths of words": {"byte_lengths": np.array([0.5, 1.5])},
}


def test_indexes_of_shards_that_lie(place):
    (place / "shard-000000.tar").write_bytes(hostile.tar({"1": b"123456789", "2": b"123456789"}))
    write_index(place / "index.npz", index())
    read_shard_index(str(place))
    for name, wrong in INDEXES.items():
        write_index(place / "index.npz", index(**wrong))
        refused(lambda: read_shard_index(str(place)), name, "cannot be understood")


def test_compressed_index(place):
    zeros = np.zeros(1 << 22, np.int64)
    np.savez_compressed(place / "index.npz", version=1, labels=zeros, offsets=zeros)
    refused(lambda: read_shard_index(str(place)), "bomb", "compressed")


def test_pickle_in_an_index(place, canary):
    payload = np.empty(1, object)
    payload[0] = hostile.Call(os.system, f"touch {canary}")
    np.savez(place / "index.npz", version=np.int64(1), labels=payload)
    refused(lambda: read_shard_index(str(place)), "pickle", "cannot be understood")


def test_shards_that_are_no_files(place):
    """Each image in them is bad, at once: a pipe would keep a reader waiting, a device would never end."""
    write_index(place / "index.npz", index())
    shard = place / "shard-000000.tar"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)):
        make(shard)
        with pytest.raises(BadImage):
            ShardImages(str(place)).read(0)
        (os.rmdir if shard.is_dir() and not shard.is_symlink() else os.remove)(shard)


def test_members_of_a_shard_are_bytes_and_never_paths(place, canary):
    """Names of members are not looked at: images are bytes at an offset."""
    for name, data in hostile.climbing_tars(canary).items():
        (place / "shard-000000.tar").write_bytes(data)
        write_index(place / "index.npz", index(names=Strings.of([f"../outside/{canary.name}", str(canary)])))
        for sample in range(2):
            with pytest.raises(BadImage):
                ShardImages(str(place)).read(sample)
        assert sorted(path.name for path in place.iterdir()) == ["index.npz", "shard-000000.tar"], name


def test_published_sets_with_lists_that_climb(place):
    folder = place / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("a\n")
    (folder / "images_variant_trainval.txt").write_text("../../../../outside/x a\n")
    refused(lambda: transfer_set("aircraft", place, "train", download=False), "aircraft", "not below it")


def test_the_limit_lets_every_decodable_image_through():
    assert MOST_IMAGE_BYTES > 6 * MAX_PIXELS
