"""Shards: what was packed is what is read, wherever they lie, and an interruption leaves no trace."""

import errno
import logging
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.registry import _registry as registered
from moto.server import ThreadedMotoServer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from simsiam.data import pack, storage
from simsiam.data.datasets import has_split, is_in_splits, open_dataset
from simsiam.data.image_set import BadImage
from simsiam.data.index import read_index
from simsiam.data.loaders import make_loader
from simsiam.data.loaders.torchvision import TorchvisionLoader
from simsiam.data.pack import Packed, Packing
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.data.sources.shards import ShardImages
from simsiam.data.storage import open_storage
from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain, Views

SHARD_BYTES = 12_000
CLASSES = ("apfel", "kätzchen", "zebra")


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """JPEGs and PNGs of noise, each of another size."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        name = f"{number:02d}ü.JPEG" if number % 3 else f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    root = tmp_path_factory.mktemp("labelled")
    for seed, name in enumerate(CLASSES):
        write_images(root / name, 8 + seed, seed)
    (root / "zebra" / "broken.jpg").write_text("This is not an image.")
    (root / "zebra" / "empty.jpg").write_bytes(b"")
    return FolderImages(root)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    root = tmp_path_factory.mktemp("unlabelled")
    write_images(root, 12)
    return FolderImages(root)


@pytest.fixture
def images(request: pytest.FixtureRequest) -> FolderImages:
    return request.getfixturevalue(getattr(request, "param", "labelled"))


both = pytest.mark.parametrize("images", ["labelled", "unlabelled"], indirect=True)


def pack_to(images: FolderImages, out: object, seed: int | None = 0, shard_bytes: int = SHARD_BYTES) -> Packed:
    return Packing(images, str(out), shard_bytes=shard_bytes, seed=seed).run(2)


def names(images: FolderImages | ShardImages) -> list[str]:
    return [images.name(sample) for sample in range(len(images))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@both
@pytest.mark.parametrize("seed", [None, 0])
def test_what_was_packed_is_what_is_read(images: FolderImages, seed: int | None, tmp_path: Path) -> None:
    packed = pack_to(images, tmp_path, seed)
    shards = ShardImages(str(tmp_path), verify=True)
    row = {name: sample for sample, name in enumerate(names(images))}
    order = np.array([row[name] for name in names(shards)])
    assert sorted(order) == list(range(len(images)))
    assert (order == np.arange(len(images))).all() == (seed is None)
    assert len(packed.index.shard_names) > 2
    assert shards.classes == images.classes
    assert shards.labels.tolist() == images.labels[order].tolist()
    assert [shards.read_bytes(s) for s in range(len(shards))] == [images.read_bytes(s) for s in order]
    assert shards.index.byte_lengths.tolist() == [len(images.read_bytes(s)) for s in order]
    assert shards.index.checksums.tolist() == [zlib.crc32(images.read_bytes(s)) for s in order]
    for sample, source in enumerate(order.tolist()):
        if "broken" in shards.name(sample) or "empty" in shards.name(sample):
            assert shards.index.pixels[sample].tolist() == [0, 0]
            with pytest.raises(BadImage):
                shards.read(sample)
        else:
            assert torch.equal(shards.read(sample), images.read(source))
            assert shards.index.pixels[sample].tolist() == list(images.read(source).shape[1:])


def members_of(shard: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(shard) as archive:
        return archive.getmembers()


@both
def test_a_shard_is_a_tar_in_the_layout_of_webdataset(images: FolderImages, tmp_path: Path) -> None:
    index = pack_to(images, tmp_path).index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.npz", *index.shard_names]
    found = [(s, m) for s, name in enumerate(index.shard_names) for m in members_of(tmp_path / name)]
    expected = []
    for sample, label in enumerate(index.labels.tolist()):
        extension = index.names[sample].rpartition(".")[2].lower()
        expected += [f"{sample:09d}.{extension}"] + ([f"{sample:09d}.cls"] if label >= 0 else [])
    assert [member.name for _, member in found] == expected
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for _, m in found} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }
    pixels = [(shard, member) for shard, member in found if not member.name.endswith(".cls")]
    assert [shard for shard, _ in pixels] == index.shards.tolist()
    assert [member.offset_data for _, member in pixels] == index.offsets.tolist()
    assert [member.size for _, member in pixels] == index.byte_lengths.tolist()
    for shard, member in found:
        if member.name.endswith(".cls"):
            with tarfile.open(tmp_path / index.shard_names[shard]) as archive:
                text = archive.extractfile(member).read().decode()
            assert text == str(index.labels[int(member.name[:9])])


def test_shards_are_filled_as_far_as_the_next_image_fits(labelled: FolderImages, tmp_path: Path) -> None:
    index = pack_to(labelled, tmp_path).index
    needed = 512 * (2 + 1 - -index.byte_lengths // 512)  # two headers, a block of label, and the image
    filled = np.bincount(index.shards, needed)
    assert (filled <= SHARD_BYTES).all()
    first = np.searchsorted(index.shards, np.arange(1, len(filled)))
    assert (filled[:-1] + needed[first] > SHARD_BYTES).all()
    assert len(set(np.bincount(index.shards))) > 1
    for number, name in enumerate(index.shard_names):
        assert filled[number] < (tmp_path / name).stat().st_size <= filled[number] + tarfile.RECORDSIZE + 1024


def test_an_image_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    for number, size in enumerate([100, 5_000, 100, 100]):
        (tmp_path / "in" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "a" / f"{number}.jpg").write_bytes(bytes(size))
    images = FolderImages(tmp_path / "in")
    assert pack_to(images, tmp_path / "out", None, 4096).index.shards.tolist() == [0, 1, 2, 2]
    assert pack_to(images, tmp_path / "each", None, 1).index.shards.tolist() == [0, 1, 2, 3]
    assert [len(ShardImages(str(tmp_path / "each")).read_bytes(sample)) for sample in range(4)] == [100, 5000, 100, 100]


def test_val_classes_are_numbered_by_those_of_train(labelled: FolderImages, tmp_path: Path) -> None:
    pack_to(labelled, tmp_path, None)
    shards = ShardImages(str(tmp_path), ("zebra", "kätzchen", "other", "apfel"))
    assert [shards.classes[label] for label in shards.labels] == [name.split("/")[0] for name in names(labelled)]
    with pytest.raises(UserError, match="kätzchen has no counterpart"):
        ShardImages(str(tmp_path), ("apfel", "zebra"))


def test_a_part_of_a_set_reads_its_images(labelled: FolderImages, tmp_path: Path) -> None:
    pack_to(labelled, tmp_path)
    shards = ShardImages(str(tmp_path))
    rows = np.array([20, 3, 11])
    part = shards.take(rows)
    assert [part.read_bytes(sample) for sample in range(3)] == [shards.read_bytes(row) for row in rows]
    assert part.labels.tolist() == shards.labels[rows].tolist()


class Bytes(Dataset):
    def __init__(self, images: ShardImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> bytes:
        return self.images.read_bytes(sample)


def read_by_workers(images: ShardImages) -> list[bytes]:
    loader = DataLoader(
        Bytes(images), batch_size=None, num_workers=2, collate_fn=lambda item: item, multiprocessing_context="fork"
    )
    return list(loader)


def test_forked_workers_copies_and_threads_read_alike(labelled: FolderImages, tmp_path: Path) -> None:
    pack_to(labelled, tmp_path, None)
    shards = ShardImages(str(tmp_path))
    expected = [labelled.read_bytes(sample) for sample in range(len(labelled))]
    assert read_by_workers(shards) == expected  # before this process has opened a shard
    assert [shards.read_bytes(sample) for sample in range(len(shards))] == expected
    assert read_by_workers(shards) == expected  # and after
    copy = pickle.loads(pickle.dumps(shards))
    assert [copy.read_bytes(sample) for sample in range(len(copy))] == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read_bytes, list(range(len(shards))) * 20)) == expected * 20


def test_each_shard_is_opened_once_and_closed_at_the_end(
    labelled: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pack_to(labelled, tmp_path).index
    shards = ShardImages(str(tmp_path))
    opened, closed, real = [], [], os.open
    monkeypatch.setattr(os, "open", lambda *a: opened.append(real(*a)) or opened[-1])
    monkeypatch.setattr(storage._OpenFile.__del__, "__defaults__", (closed.append,))
    for _ in range(2):
        for sample in range(len(shards)):
            shards.read_bytes(sample)
    assert len(opened) == len(index.shard_names)
    assert not closed
    del shards
    assert sorted(closed) == sorted(opened)
    for descriptor in opened:
        os.close(descriptor)


def test_more_shards_than_may_be_open_are_read_all_the_same(
    labelled: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_to(labelled, tmp_path, None)
    monkeypatch.setattr(storage, "_MOST_OPEN", 2)
    shards = ShardImages(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(shards.read_bytes, list(range(len(shards))) * 20))
    assert got == [labelled.read_bytes(sample) for sample in range(len(labelled))] * 20


class Interruption(BaseException):
    """As KeyboardInterrupt is no Exception, and unlike it no end of the test run."""


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Makes the `call`-th call of a function, from 0, an interruption."""
    real, calls = getattr(owner, name), iter(range(1 << 30))

    def wrapped(*arguments: object, **more: object) -> object:
        if next(calls) == call:
            raise Interruption
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, wrapped)


# A shard of 12,000 bytes holds about four images and so eight members; each shard is two writings, the index the last.
MOMENTS = [(pack, "_add", at) for at in (0, 5, 11, 30)] + [(storage.LocalStorage, "writing", at) for at in (0, 1, 2, 5)]
MOMENTS += [(storage.os, "replace", at) for at in (0, 1, 2, 3)] + [(pack, "write_index", 0)]
MOMENTS += [(storage.LocalStorage, "remove", at) for at in (0, 2)]


@pytest.mark.parametrize(("owner", "function", "call"), MOMENTS)
def test_an_interrupted_packing_ends_in_the_same_bytes(
    labelled: FolderImages, owner: object, function: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_to(labelled, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        interrupt(patch, owner, function, call)
        with pytest.raises(Interruption):
            pack_to(labelled, tmp_path / "out")
    out = tmp_path / "out"
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} if out.exists() else {}
    parts = {path.stem for path in out.glob("shard-*.npz")} if out.exists() else set()
    assert not out.exists() or not list(out.glob(".*"))
    pack_to(labelled, out)
    assert contents(out) == contents(tmp_path / "undisturbed")
    for name, changed in whole.items():
        assert name[:-4] not in parts or (out / name).stat().st_mtime_ns == changed


def test_a_draft_that_a_kill_left_is_written_anew(labelled: FolderImages, tmp_path: Path) -> None:
    (tmp_path / ".shard-000000.tar.tmp").write_bytes(bytes(1 << 20))
    pack_to(labelled, tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "shard-000000.tar").stat().st_size < 1 << 20


@pytest.fixture
def interrupted(labelled: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        interrupt(patch, pack, "_add", 30)
        with pytest.raises(Interruption):
            pack_to(labelled, tmp_path / "out")
    return tmp_path / "out"


def test_an_interrupted_packing_is_not_gone_on_with_otherwise(
    labelled: FolderImages, unlabelled: FolderImages, interrupted: Path
) -> None:
    before = contents(interrupted)
    for options in ({"shard_bytes": 13_000}, {"seed": 1}, {"seed": None}):
        with pytest.raises(UserError, match="--shard-bytes 12000 --shuffle --seed 0, which was interrupted; end it"):
            pack_to(labelled, interrupted, **options)
    for other in (unlabelled, labelled.take(np.arange(len(labelled) - 1))):
        with pytest.raises(UserError, match="another list of images, which was interrupted"):
            pack_to(other, interrupted)
    with pytest.raises(UserError, match="or run that command again where it was interrupted"):
        open_dataset(str(interrupted), "pretrain")
    assert contents(interrupted) == before


def test_a_complete_packing_is_left_as_it_is(labelled: FolderImages, unlabelled: FolderImages, tmp_path: Path) -> None:
    first = pack_to(labelled, tmp_path, None)
    before = contents(tmp_path)
    again = pack_to(labelled, tmp_path, None)
    assert (first.was_there, again.was_there) == (False, True)
    assert len(again.index) == len(first.index)
    with pytest.raises(UserError, match="--shard-bytes 12000 --no-shuffle, which is complete; give another folder"):
        pack_to(labelled, tmp_path, 0)
    with pytest.raises(UserError, match="another list of images, which is complete"):
        pack_to(unlabelled, tmp_path, None)
    assert contents(tmp_path) == before
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match="lacks 1 shards of its index, such as shard-000001.tar"):
        pack_to(labelled, tmp_path, None)


def test_tar_files_of_another_origin_are_not_overwritten(labelled: FolderImages, tmp_path: Path) -> None:
    (tmp_path / "shard-000007.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="1 tar files of another origin, such as shard-000007.tar"):
        pack_to(labelled, tmp_path)


@pytest.mark.parametrize("call", [None, 9])
def test_unreadable_files_are_left_out_and_listed(
    call: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in" / "a", 12)
    images = FolderImages(tmp_path / "in")
    gone = [0, 1, 5, 11]
    for sample in gone:
        (tmp_path / "in" / images.name(sample)).unlink()
    if call is not None:
        with monkeypatch.context() as patch:
            interrupt(patch, pack, "_add", call)
            with pytest.raises(Interruption):
                pack_to(images, tmp_path / "out", None)
    for was_there in (False, True):
        packed = pack_to(images, tmp_path / "out", None)
        assert packed.was_there == was_there
        assert packed.left_out == [(images.name(sample), "No such file or directory") for sample in gone]
    shards = ShardImages(str(tmp_path / "out"))
    left = [sample for sample in range(12) if sample not in gone]
    assert names(shards) == [images.name(sample) for sample in left]
    assert [shards.read_bytes(s) for s in range(8)] == [images.read_bytes(sample) for sample in left]
    members = [m.name for name in packed.index.shard_names for m in members_of(tmp_path / "out" / name)]
    assert [member for member in members if member.endswith("cls")] == [f"{sample:09d}.cls" for sample in range(8)]


def test_mistakes_are_sentences(labelled: FolderImages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shard-bytes 0"):
        pack_to(labelled, tmp_path, shard_bytes=0)
    with pytest.raises(UserError, match="--seed -1"):
        pack_to(labelled, tmp_path, -1)
    with pytest.raises(UserError, match="--workers 0"):
        Packing(labelled, str(tmp_path)).run(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be read \(Not a directory\)"):
        pack_to(labelled, tmp_path / "file")
    with pytest.raises(UserError, match=r"file/below cannot be .*Not a directory"):
        pack_to(labelled, tmp_path / "file" / "below")
    write_images(tmp_path / "in" / "a", 2)
    images = FolderImages(tmp_path / "in")
    for sample in range(2):
        (tmp_path / "in" / images.name(sample)).unlink()
    with pytest.raises(UserError, match=r"None of the 2 images can be read, such as a/0.*No such file"):
        pack_to(images, tmp_path / "none")


def test_a_full_disk_keeps_the_whole_shards(
    labelled: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1 << 30))
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*goes on after"):
            pack_to(labelled, tmp_path)
    assert sorted(contents(tmp_path)) == [f"shard-00000{n}.{kind}" for n in (0, 1) for kind in ("npz", "tar")]
    pack_to(labelled, tmp_path)
    assert ShardImages(str(tmp_path), verify=True).read_bytes(0)


def test_a_flipped_bit_is_found_where_checksums_are_verified(labelled: FolderImages, tmp_path: Path) -> None:
    index = pack_to(labelled, tmp_path).index
    sample = next(s for s in range(len(index)) if index.byte_lengths[s])
    path = tmp_path / index.shard_names[index.shards[sample]]
    data = bytearray(path.read_bytes())
    data[index.offsets[sample] + index.byte_lengths[sample] // 2] ^= 1
    path.write_bytes(data)
    assert open_dataset(str(tmp_path), "train").read_bytes(sample)
    verifying = open_dataset(str(tmp_path), "train", checksums=True)
    with pytest.raises(BadImage, match="checksum"):
        verifying.read_bytes(sample)
    assert all(verifying.read_bytes(s) is not None for s in range(len(index)) if s != sample)


def test_a_shard_cut_short_or_gone_makes_bad_images(labelled: FolderImages, tmp_path: Path) -> None:
    index = pack_to(labelled, tmp_path).index
    os.truncate(tmp_path / "shard-000001.tar", 600)
    (tmp_path / "shard-000002.tar").unlink()
    shards = ShardImages(str(tmp_path))
    for sample in range(len(shards)):
        if not index.byte_lengths[sample] or index.shards[sample] not in (1, 2):
            assert len(shards.read_bytes(sample)) == index.byte_lengths[sample]
            continue
        why = "shard-000001.tar is cut short" if index.shards[sample] == 1 else "shard-000002.tar: No such file"
        with pytest.raises(BadImage, match=why):
            shards.read_bytes(sample)


@pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 3), (errno.ESTALE, 3), (errno.EACCES, 1)])
def test_errors_that_may_pass_are_waited_for(
    labelled: FolderImages, code: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_to(labelled, tmp_path)
    shards, real, calls = ShardImages(str(tmp_path)), os.pread, []

    def failing(times: int) -> Callable[..., bytes]:
        def pread(*arguments: int) -> bytes:
            calls.append(arguments)
            if len(calls) <= times:
                raise OSError(code, "it does not answer")
            return real(*arguments)

        return pread

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "pread", failing(1 << 30))
    with pytest.raises(BadImage, match=r"shard-00000\d.tar: it does not answer"):
        shards.read_bytes(0)
    assert len(calls) == tries
    calls.clear()
    monkeypatch.setattr(os, "pread", failing(tries - 1))
    assert shards.read_bytes(0)


def test_no_index_or_a_damaged_one_is_a_sentence(labelled: FolderImages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index.npz.*simsiam shards"):
        ShardImages(str(tmp_path / "nowhere"))
    pack_to(labelled, tmp_path)
    whole = (tmp_path / "index.npz").read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"hello"):
        (tmp_path / "index.npz").write_bytes(data)
        with pytest.raises(UserError, match=r"index.npz cannot be understood .*remove it"):
            ShardImages(str(tmp_path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registered, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for opening in (ShardImages, lambda url: open_dataset(url, "pretrain"), lambda url: has_split(url, "val")):
        with pytest.raises(UserError, match="run `pip install s3fs`"):
            opening("s3://bucket/train")
    with pytest.raises(UserError, match="Protocol not known: nonsense"):
        ShardImages("nonsense://bucket")


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of files in this process."""
    yield "memory://packed"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("kind", ["local", "file", "memory"])
def test_splits_of_shards_are_found_as_those_of_folders(
    kind: str, labelled: FolderImages, unlabelled: FolderImages, memory: str, tmp_path: Path
) -> None:
    place = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": memory}[kind]
    pack_to(labelled, place)
    assert len(open_dataset(f"{place}/", "pretrain")) == len(labelled)
    assert not has_split(place, "val")
    assert not is_in_splits(place)
    with pytest.raises(UserError, match="no validation images"):
        open_dataset(place, "val")
    pack_to(labelled.take(np.arange(9, 20)), f"{place}/sets/test")
    with pytest.raises(UserError, match="holds test but no train"):
        open_dataset(f"{place}/sets", "train")
    pack_to(labelled, f"{place}/sets/train")
    train = open_dataset(f"{place}/sets", "train", checksums=True)
    val = open_dataset(f"{place}/sets", "val", classes=train.classes)
    assert (len(train), len(val)) == (len(labelled), 11)
    assert isinstance(val, ShardImages)
    assert train.verify
    assert is_in_splits(f"{place}/sets")
    assert has_split(f"{place}/sets", "val")
    pack_to(unlabelled, f"{place}/plain/train")
    assert open_dataset(f"{place}/plain", "pretrain").labels.tolist() == [-1] * len(unlabelled)
    with pytest.raises(UserError, match=r"holds no index.npz|neither a folder"):
        open_dataset(f"{place}/nothing", "train")


def test_the_loader_makes_the_crops_of_the_folder(labelled: FolderImages, tmp_path: Path) -> None:
    pack_to(labelled, tmp_path, None)
    settings = Pretrain(batch_size=8, seed=3, workers=2, loader="torchvision", views=Views(size=24))
    plan = Plan(len(labelled), 8, 3)

    def load(images: FolderImages | ShardImages) -> list:
        loader = make_loader(images, plan, settings, 2, torch.device("cpu"))
        assert isinstance(loader, TorchvisionLoader)
        return [crops for step in loader.steps(0, 5) for crops in step]

    for ours, theirs in zip(load(ShardImages(str(tmp_path))), load(labelled), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.replaced == theirs.replaced
        assert ours.samples.tolist() == theirs.samples.tolist()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket of a store on this machine."""
    import s3fs

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in [("ACCESS_KEY_ID", "nobody"), ("SECRET_ACCESS_KEY", "none"), ("DEFAULT_REGION", "us-east-1")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    yield "s3://bucket"
    files.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_shards_in_s3_are_packed_gone_on_with_and_read(
    labelled: FolderImages, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_to(labelled, tmp_path, None)
    url = f"{bucket}/imagenet/train"
    with monkeypatch.context() as patch:
        interrupt(patch, pack, "_add", 30)
        with pytest.raises(Interruption):
            pack_to(labelled, url, None)
    assert "index.npz" not in open_storage(url).names()
    assert "shard-000001.npz" in open_storage(url).names()
    assert not pack_to(labelled, url, None).was_there
    assert pack_to(labelled, url, None).was_there
    remote = open_storage(url)
    assert {name: remote.read(name) for name in remote.names()} == contents(tmp_path)
    shards = open_dataset(f"{bucket}/imagenet", "train", checksums=True)
    assert isinstance(shards, ShardImages)
    expected = [labelled.read_bytes(sample) for sample in range(len(labelled))]
    assert [shards.read_bytes(sample) for sample in range(len(shards))] == expected
    assert read_by_workers(shards) == expected
    assert pickle.loads(pickle.dumps(shards)).read_bytes(4) == expected[4]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shards.read_bytes, range(len(shards)))) == expected


def test_what_is_missing_or_cut_short_in_s3_is_named(
    labelled: FolderImages, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_to(labelled, bucket, None)
    shards, first = ShardImages(bucket), open_storage(bucket).read("shard-000001.tar")
    with open_storage(bucket).writing("shard-000001.tar") as file:
        file.write(first[: shards.index.offsets[shards.index.shards == 1][1] + 5])
    cut = np.flatnonzero(shards.index.shards == 1)
    assert shards.read_bytes(cut[0])
    with pytest.raises(BadImage, match="is cut short: 5 of"):
        shards.read_bytes(cut[1])
    with pytest.raises(BadImage, match=r"shard-000001.tar: .*not satisfiable"):
        shards.read_bytes(cut[2])
    open_storage(bucket).remove("shard-000000.tar")
    with pytest.raises(BadImage, match=r"shard-000000.tar: .*does not exist"):
        shards.read_bytes(0)
    with pytest.raises(UserError, match=r"s3://none cannot be written \(The specified bucket does not exist\)"):
        pack_to(labelled, "s3://none")
    with pytest.raises(UserError, match="s3://bucket/none holds no index.npz"):
        open_dataset("s3://bucket/none", "pretrain")


def test_nothing_incomplete_appears_in_a_store(memory: str) -> None:
    def write_half() -> None:
        with open_storage(memory).writing("shard-000000.tar") as file:
            file.write(b"half")
            raise Interruption

    with pytest.raises(Interruption):
        write_half()
    assert open_storage(memory).names() == []


def test_the_index_says_what_it_was_packed_from(labelled: FolderImages, tmp_path: Path) -> None:
    pack_to(labelled, tmp_path, 7)
    _, more = read_index(tmp_path / "index.npz")
    assert more["options"].tolist() == [SHARD_BYTES, 1, 7]
