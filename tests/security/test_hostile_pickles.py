"""Nothing that a pickle says is run, whatever file it is in and whoever reads it."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from simsiam.checkpoint.metadata import read_metadata
from simsiam.checkpoint.reader import CheckedReader
from simsiam.data.sources.binaries import cifar10
from simsiam.evaluation.feature_cache import CachedFeatures
from simsiam.evaluation.pretrained import pretrained_encoder
from simsiam.export.read import read_encoder
from simsiam.export.state import read_state
from simsiam.methods.distillation import frozen_teacher
from simsiam.settings.tree import Linear
from tests.security import hostile
from tests.security.conftest import refused

BOMBS = {
    "memo": hostile.memo_bomb,
    "bytes": hostile.bytes_bomb,
    "tuple": hostile.tuple_bomb,
    "doubling": hostile.doubling_bomb,
}


def test_the_gadgets_work_where_nobody_is_careful(place):
    canary = place / "canary"
    for name, data in hostile.gadgets(canary).items():
        with warnings.catch_warnings(action="ignore"):
            pickle.loads(data)
        assert canary.exists(), name
        canary.unlink()


CARRIERS = {
    "x.pt": hostile.torch_zip,
    "odd.pt": lambda data: hostile.torch_zip(data, "../../outside"),
    "absolute.pt": lambda data: hostile.torch_zip(data, "/tmp"),
    "legacy.pth": hostile.torch_legacy,
    "magic.pth": lambda data: hostile.torch_legacy(data, 0),
    "system.pth": lambda data: hostile.torch_legacy(data, 2),
    "keys.pth": lambda data: hostile.torch_legacy(data, 4),
    "plain.pth.tar": lambda data: data,
    "old.pth.tar": hostile.torch_tar,
    "script.pt": hostile.torch_script,
    "x.pdparams": lambda data: data,
}


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_encoder_files(place, canary, carrier):
    for name, data in hostile.gadgets(canary).items():
        (place / carrier).write_bytes(CARRIERS[carrier](data))
        said = refused(lambda: read_encoder(place / carrier), name, carrier)
        if carrier == "x.pt" and name not in ("instance", "dotted"):
            assert "could run code" in said, name


def test_every_way_to_an_encoder(place, canary, call):
    file = place / "x.pth"
    file.write_bytes(hostile.torch_zip(hostile.gadgets(canary)["beside tensors"]))
    refused(lambda: pretrained_encoder(Linear(pretrained=str(file))), "--pretrained", "could run code")
    refused(lambda: frozen_teacher(str(file)), "teacher", "could run code")
    assert call("simsiam/__main__.py", "extract", file, place / "out.safetensors") == 2
    assert not (place / "out.safetensors").exists()


def test_compressed_file_of_torch(place):
    (place / "x.pt").write_bytes(hostile.torch_zip(b"\0" * (32 << 20), method=8))
    refused(lambda: read_encoder(place / "x.pt"), "a zip bomb", "compressed")


def test_cifar(place, canary):
    folder = place / "cifar-10-batches-py"
    folder.mkdir()
    for number in (1, 2, 3, 4, 5):
        (folder / f"data_batch_{number}").write_bytes(b"")
    (folder / "batches.meta").write_bytes(b"")
    bombs = {name: bomb() for name, bomb in BOMBS.items()}
    for name, data in {**hostile.gadgets(canary), **bombs}.items():
        (folder / "data_batch_1").write_bytes(data)
        refused(lambda: cifar10(place, "train"), name, "data_batch_1")


def test_bombs_in_paddles_files(place):
    for name, bomb in BOMBS.items():
        (place / "x.pdparams").write_bytes(bomb())
        refused(lambda: read_state(place / "x.pdparams"), name, "x.pdparams")
    for dtype, shape in [("f4", (1 << 40,)), ("f4", (-1,)), ("O", (1,)), ("V9", (1,)), ("f4", (3,)), ("S4", (1,))]:
        (place / "x.pdparams").write_bytes(hostile.array_pickle(dtype, shape))
        refused(lambda: read_state(place / "x.pdparams"), f"{dtype} {shape}", "x.pdparams")


@pytest.fixture
def checkpoint(place: Path) -> Path:
    folder = place / "run" / "checkpoints" / "step_00000001"
    with warnings.catch_warnings(action="ignore"):  # torch warns of a lone process
        dcp.save({"model": {"encoder.conv1.weight": torch.ones(4)}, "step": torch.tensor(1)}, checkpoint_id=folder)
    return folder


def test_whole_metadata_is_what_torch_reads(checkpoint):
    ours, torchs = read_metadata(checkpoint / ".metadata"), dcp.FileSystemReader(checkpoint).read_metadata()
    for name in ("state_dict_metadata", "storage_data", "planner_data"):
        assert getattr(ours, name) == getattr(torchs, name)
    held = {"step": torch.tensor(9), "model": {"encoder.conv1.weight": torch.zeros(4)}}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(held, storage_reader=CheckedReader(checkpoint))
    assert held["step"] == 1
    assert held["model"]["encoder.conv1.weight"].tolist() == [1] * 4


def test_every_kind_of_tensor(place):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64]
    state = {str(kind): torch.zeros(2, 3, dtype=kind) for kind in kinds}
    state |= {"empty": torch.zeros(0, 3), "last": torch.zeros(1, 2, 3, 3).to(memory_format=torch.channels_last)}
    with warnings.catch_warnings(action="ignore"):
        dcp.save(state, checkpoint_id=place / "x")
    assert read_metadata(place / "x" / ".metadata").state_dict_metadata.keys() == state.keys()


def test_metadata_runs_nothing(checkpoint, canary):
    file = checkpoint / ".metadata"
    for name, data in hostile.gadgets(canary).items():
        file.write_bytes(data)
        refused(lambda: read_metadata(file), name, ".metadata")
        refused(lambda: read_encoder(checkpoint), name)
    file.write_bytes(hostile.gadgets(canary)["system"])
    refused(lambda: read_metadata(file), "system", f"{file} names posix.system")
    for name, bomb in BOMBS.items():
        file.write_bytes(bomb())
        refused(lambda: read_metadata(file), name)


def changed(checkpoint: Path, change: Callable) -> None:
    """Writes `.metadata` anew, as `change` leaves it."""
    metadata = dcp.FileSystemReader(checkpoint).read_metadata()
    change(metadata)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def _first(metadata):
    name = "model.encoder.conv1.weight"
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == name)
    return metadata.state_dict_metadata[name], info


def _not_a_tensor(metadata):
    metadata.state_dict_metadata["x"] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex("x")] = _first(metadata)[1]


def _dressed_as_a_tensor(metadata):
    # DCP would take it for bytes, and unpickle them without limits.
    name = "model.encoder.conv1.weight"
    entry, dressed = metadata.state_dict_metadata[name], BytesStorageMetadata()
    vars(dressed).update(vars(entry))
    metadata.state_dict_metadata[name] = dressed


def _elsewhere(path):
    def change(metadata):
        _first(metadata)[1].relative_path = path

    return change


def _of(which, **values):
    def change(metadata):
        for name, value in values.items():
            setattr(_first(metadata)[which], name, value)

    return change


CHANGES = {
    "not a tensor": (_not_a_tensor, "is no tensor"),
    "dressed as a tensor": (_dressed_as_a_tensor, "is no tensor"),
    **{path: (_elsewhere(path), "no file beside it") for path in ("../x.distcp", "/etc/passwd", "a/../../x", "..", "")},
    "zero in a name": (_elsewhere("a\0b"), "no file beside it"),
    "no file": (_elsewhere("other.distcp"), "not there"),
    "folder": (_elsewhere("folder"), "not there"),
    "link": (_elsewhere("link.distcp"), "is a link"),
    "negative offset": (_of(1, offset=-1), "no number"),
    "far offset": (_of(1, offset=1 << 61), "cut short"),
    "long": (_of(1, length=1 << 40), "cut short"),
    "compressed": (_of(1, transform_descriptors=["zstd"]), "compressed"),
    "huge": (_of(0, size=torch.Size([1 << 40])), "is not all there"),
    "huge piece": (lambda m: setattr(_first(m)[0].chunks[0], "sizes", torch.Size([1 << 40])), "not where it says"),
    "pieces": (lambda m: _first(m)[0].chunks.extend(_first(m)[0].chunks * 9), "pieces"),
    "no properties": (_of(0, properties=None), "no type"),
    "places": (lambda m: m.planner_data.update(x=(1.5,)), "no name"),
    "no storage": (lambda m: m.storage_data.clear(), "not where it says"),
}


def test_metadata_that_lies(checkpoint):
    whole = (checkpoint / ".metadata").read_bytes()
    (checkpoint / "folder").mkdir()
    (checkpoint / "link.distcp").symlink_to(next(checkpoint.glob("__*.distcp")))
    for name, (change, match) in CHANGES.items():
        changed(checkpoint, change)
        refused(lambda: read_metadata(checkpoint / ".metadata"), name, match)
        refused(lambda: read_encoder(checkpoint), name)
        (checkpoint / ".metadata").write_bytes(whole)
    read_metadata(checkpoint / ".metadata")


def test_metadata_behind_a_link(checkpoint, place):
    (place / "step_00000001").symlink_to(checkpoint)
    refused(lambda: read_metadata(place / "step_00000001" / ".metadata"), "linked folder", "link")
    (checkpoint / ".metadata").rename(place / "metadata")
    (checkpoint / ".metadata").symlink_to(place / "metadata")
    refused(lambda: read_metadata(checkpoint / ".metadata"), "linked file", "link")


def test_metadata_that_is_all_small_objects(checkpoint):
    (checkpoint / ".metadata").write_bytes(b"\x80\x04" + b"}" * (8 << 20))
    refused(lambda: read_metadata(checkpoint / ".metadata"), "too large", "more than 8,388,608 bytes")
    (checkpoint / ".metadata").write_bytes(b"\x80\x04" + b"}" * (1 << 20))
    refused(lambda: read_metadata(checkpoint / ".metadata"), "no end")


def test_shard_of_a_checkpoint(checkpoint, canary):
    """DCP itself reads it, with weights_only."""
    file = next(checkpoint.glob("__*.distcp"))
    length = file.stat().st_size
    for name, data in hostile.gadgets(canary).items():
        for carried in (data, hostile.torch_zip(data)):
            file.write_bytes(carried.ljust(length, b"\0"))
            refused(lambda: read_encoder(checkpoint), name, "cannot be read")


def test_numpys_files(place, canary):
    payload = np.empty(1, object)
    payload[0] = hostile.Call(os.system, f"touch {canary}")
    np.save(place / "00-of-01.npy", payload, allow_pickle=True)
    np.savez(place / "00-of-01.index.npz", about=payload, samples=payload, labels=payload, skipped=payload)
    refused(lambda: CachedFeatures(place, 1, ("a",)), "features", "remove the folder")
    np.save(place / "00-of-01.npy", np.zeros((3, 2), np.float16))
    refused(lambda: CachedFeatures(place, 1, ("a",)), "labels", "remove the folder")
    zeros = np.zeros(1 << 22, np.int64)
    np.savez_compressed(place / "00-of-01.index.npz", about="", samples=zeros[:3], labels=zeros, skipped=0)
    refused(lambda: CachedFeatures(place, 1, ("a",)), "compressed", "is compressed")
