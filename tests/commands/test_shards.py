"""`simsiam shards`: what it packs of a folder, where to, and what it says."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsiam.commands import shards
from simsiam.data.datasets import open_dataset
from simsiam.errors import UserError


def call(*words: object) -> None:
    parser = argparse.ArgumentParser()
    shards.add_arguments(parser)
    shards.run(parser.parse_args([*map(str, words), "--workers", "2"]))


def write(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / path)
    return root


def names(data: Path, split: str, **more: tuple[str, ...]) -> list[str]:
    images = open_dataset(str(data), split, **more)
    return [images.name(sample) for sample in range(len(images))]


TRAIN = [f"{name}/{number:02d}.png" for name in "abc" for number in range(20)]


@pytest.mark.parametrize("val", ["val", "test", "validation"])
def test_each_split_is_packed_and_opens_as_the_folder_did(
    val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "in", *(f"train/{path}" for path in TRAIN), f"{val}/c/1.png", f"{val}/a/1.png")
    call(root, tmp_path / "out", "--no-shuffle")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]
    assert names(tmp_path / "out", "train") == TRAIN
    # Numbered by train in the shards already: others read the numbers there, and not this index.
    assert open_dataset(str(tmp_path / "out"), "val").labels.tolist() == [0, 2]
    printed = capsys.readouterr().out
    assert "train       60 images" in printed
    assert f"in 1 shard: packed, {tmp_path}/out/train" in printed
    assert "val         2 images" in printed
    call(root, tmp_path / "out", "--no-shuffle")
    assert f"had been packed before, {tmp_path}/out/val" in capsys.readouterr().out


def test_a_folder_without_splits_is_packed_into_out_itself(tmp_path: Path) -> None:
    root = write(tmp_path / "in", *TRAIN)
    call(root, f"{tmp_path}/out/")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.npz", "shard-000000.tar"]
    assert sorted(names(tmp_path / "out", "train")) == TRAIN


def test_train_alone_is_packed_as_train(tmp_path: Path) -> None:
    call(write(tmp_path / "in", "train/1.png", "train/2.png"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    assert open_dataset(str(tmp_path / "out"), "pretrain").labels.tolist() == [-1, -1]


def test_images_are_mixed_by_the_seed_unless_it_is_forbidden(tmp_path: Path) -> None:
    root = write(tmp_path / "in", *TRAIN)
    for name, words in {"0": [], "again": ["--seed", 0], "1": ["--seed", 1], "sorted": ["--no-shuffle"]}.items():
        call(root, tmp_path / name, "--shard-bytes", 10_000, *words)
    orders = {name: names(tmp_path / name, "train") for name in ("0", "again", "1", "sorted")}
    assert orders["0"] == orders["again"]
    assert (tmp_path / "0" / "shard-000000.tar").read_bytes() == (tmp_path / "again" / "shard-000000.tar").read_bytes()
    assert orders["sorted"] == TRAIN
    assert len({tuple(order) for order in orders.values()}) == 3
    classes_of_first_shard = open_dataset(str(tmp_path / "0"), "train").labels[:9]
    assert len(np.unique(classes_of_first_shard)) > 1


def test_what_cannot_be_read_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "in", *TRAIN)
    for path in TRAIN[:30]:
        (root / path).unlink()
        (root / path).symlink_to("nowhere")
    call(root, tmp_path / "out", "--no-shuffle")
    printed = capsys.readouterr().out
    assert "30 images" in printed
    assert "left out as unreadable: 30 files" in printed
    assert "a/00.png: No such file or directory" in printed
    assert "and 10 more" in printed


def test_shards_are_packed_anew_with_other_options(tmp_path: Path) -> None:
    root = write(tmp_path / "in", *(f"train/{path}" for path in TRAIN), "val/b/1.png")
    call(root, tmp_path / "small", "--shard-bytes", 10_000)
    call(tmp_path / "small", tmp_path / "large", "--no-shuffle")
    assert names(tmp_path / "large", "train") == names(tmp_path / "small", "train")
    assert len(list((tmp_path / "small" / "train").glob("*.tar"))) > 1
    assert len(list((tmp_path / "large" / "train").glob("*.tar"))) == 1


def test_mistakes_cost_no_packing(tmp_path: Path) -> None:
    root = write(tmp_path / "in", *(f"train/{path}" for path in TRAIN), "val/zebra/1.png")
    with pytest.raises(UserError, match="zebra has no counterpart"):
        call(root, tmp_path / "out")
    (root / "val" / "zebra").rename(root / "val" / "b")
    (tmp_path / "out" / "val").mkdir(parents=True)
    (tmp_path / "out" / "val" / "shard-000003.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="of another origin"):
        call(root, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()
    for inside in (root, root / "shards", root / "train" / "shards"):
        with pytest.raises(UserError, match="where it would be taken for images"):
            call(root, inside)
    with pytest.raises(UserError, match="nothing to pack"):
        call("digits", tmp_path / "digits")
    with pytest.raises(UserError, match="neither a folder"):
        call(tmp_path / "nowhere", tmp_path / "other")
