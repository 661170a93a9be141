"""`simsiam knn`: what it prints and writes, on any number of ranks, and what it refuses."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from simsiam.commands import knn
from simsiam.errors import UserError
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views
from tests.processes import free_port

QUICK = ("--recipe", "lincls-quickstart", "--device", "cpu", "--workers", "0")
RANDOM = ("random", "digits", "--encoder", "resnet8", "--subset", "0.3")


def call(*words: object) -> None:
    parser = argparse.ArgumentParser()
    knn.add_arguments(parser)
    knn.run(parser.parse_args([str(word) for word in words]))


def figures(folder: Path) -> dict:
    return json.loads((folder / "knn.json").read_text())


def write(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


FOUR = ("train/a/1.png", "train/b/1.png", "train/b/2.png", "val/b/1.png")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of one process, and what it printed."""
    out = tmp_path_factory.mktemp("once")
    words = [*RANDOM, *QUICK, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "simsiam", "knn", *words], text=True, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_cell_is_printed_and_written(once: tuple[Path, str]) -> None:
    out, printed = once
    wrote = figures(out)
    torch.manual_seed(0)
    assert wrote["encoder_sha256"] == encoder_hash(build_encoder("resnet8"))
    assert wrote["encoder_sha256"] in printed
    assert (wrote["data"], wrote["subset"], wrote["images"], wrote["skipped"]) == ("digits", "0.3", 360, 0)
    assert (wrote["device"], wrote["precision"], wrote["world_size"]) == ("cpu", "fp32", 1)
    assert wrote["views"]["size"] == 32
    assert 400 < wrote["bank_images"] < 460
    assert [(cell["k"], cell["temperature"]) for cell in wrote["cells"]] == [
        (k, temperature) for k in (10, 20, 100, 200) for temperature in (0.07, 0.1, 0.2)
    ]
    rows = [line.split()[2:] for line in printed.splitlines() if line.startswith("  k ")]
    assert rows[:4] == [[f"{cell['top1']:.2f}" for cell in wrote["cells"][i : i + 3]] for i in range(0, 12, 3)]
    assert rows[4:] == [[f"{cell['top5']:.2f}" for cell in wrote["cells"][i : i + 3]] for i in range(0, 12, 3)]
    assert wrote["cells"][0]["top1"] > 20  # by chance 10
    assert "as in lincls-quickstart" in printed
    assert "k 200 at T 0.1 is the default of the kNN monitor" in printed


def on_a_rank(rank: int, world: int, port: int, words: tuple[str, ...]) -> None:
    """As torchrun starts a process."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (ranks | address).items()})
    call(*words)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_cells_are_the_same_on_any_number_of_ranks(once: tuple[Path, str], tmp_path: Path, ranks: int) -> None:
    words = (*RANDOM, *QUICK, "--out", str(tmp_path))
    mp.start_processes(on_a_rank, (ranks, free_port(), words), nprocs=ranks, start_method="fork")
    wrote, alone = figures(tmp_path), figures(once[0])
    assert wrote["world_size"] == ranks
    for varies in ("seconds", "world_size"):
        del wrote[varies], alone[varies]
    assert wrote == alone


def test_a_folder_with_damaged_images_and_k_above_the_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "set", *FOUR, "val/a/1.png")
    (data / "train/a/2.png").write_bytes(b"torn")
    (data / "val/b/2.png").write_bytes(b"torn")
    words = ("random", data, "--encoder", "resnet8", *QUICK, "--loader", "torchvision")
    call(*words, "--k", "3,1,200", "--temperature", "1e-6", "--out", tmp_path)
    wrote = figures(tmp_path)
    assert (wrote["bank_images"], wrote["bank_skipped"], wrote["images"], wrote["skipped"]) == (3, 1, 2, 1)
    assert [cell["k"] for cell in wrote["cells"]] == [1, 3, 200]
    assert len({cell["top1"] for cell in wrote["cells"]}) == 1  # so cold that the nearest decides
    printed = capsys.readouterr().out
    assert "left out    1 training image that cannot be read" in printed
    assert "k above 3: all images of the training set vote" in printed
    assert "monitor" not in printed


def test_data_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATA", "digits")
    call("random", "--encoder", "resnet8", *QUICK, "--subset", "0.02", "--k", "1", "--temperature", "1")
    assert "digits, subset 0.02: 10 classes" in capsys.readouterr().out


def test_images_are_made_as_the_recipe_the_run_or_the_file_says(tmp_path: Path) -> None:
    assert knn.views_for("lincls-cifar10", {"size": "64"})[0].size == 32
    assert knn.views_for("cifar10-r18", {})[0].size == 32  # a pretraining recipe does as well
    imagenet, of = knn.views_for(None, {})
    assert (imagenet.size, imagenet.resize, imagenet.mean, of) == (224, 256, Views().mean, "lincls-imagenet")

    said = {"path": str(tmp_path / "e.safetensors"), "pixel_mean": "[0.1, 0.2, 0.3]", "pixel_std": "[1, 1, 1]"}
    views, of = knn.views_for(None, said)
    assert (views.size, views.mean, views.std) == (224, (0.1, 0.2, 0.3), (1, 1, 1))
    assert of == f"mean and std of {said['path']}, the rest lincls-imagenet"
    assert knn.views_for(None, said | {"size": "48", "resize": "56"})[0].resize == 56
    with pytest.raises(
        UserError, match="says that its pixel_mean is 'grey', which is no list of three numbers; name a"
    ):
        knn.views_for(None, said | {"pixel_mean": "grey"})

    (tmp_path / "config.yaml").write_text("encoder: resnet8\nknn: {k: 5}\nviews: {size: 40, resize: 48}\n")
    assert knn.views_for(None, said)[0].size == 224  # the settings beside a file that is not the run's own
    views, of = knn.views_for(None, said | {"path": str(tmp_path / "encoder.safetensors")})
    assert (views.size, of) == (40, str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text("batchnorm: synced\nviews: {size: 40, resize: 48}\n")  # of semisup.py
    assert knn.views_for(None, said | {"path": str(tmp_path / "encoder.safetensors")})[0].size == 40
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    assert knn.views_for(None, {"path": str(checkpoint)})[0].size == 40


def test_an_encoder_whose_features_are_not_finite_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder("resnet8")
    with torch.no_grad():
        encoder.conv1.weight.fill_(1e38)
    write_encoder(encoder, tmp_path / "e.safetensors", metadata={})
    with pytest.raises(UserError, match=r"e.safetensors gives 4 images of .* not finite by --precision fp32; take"):
        call(tmp_path / "e.safetensors", write(tmp_path / "set", *FOUR), *QUICK)


def test_mistakes_are_named_with_their_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    whole = write(tmp_path / "whole", *FOUR)
    encoder = ("--encoder", "resnet8")
    for words, sentence in (
        (("random", whole), "give --encoder NAME, such as resnet50"),
        (("random", *encoder), "`simsiam knn ENCODER DATA`, or set DATA"),
        (("random", whole, "--data", "digits", *encoder), "given twice, as .*whole and as --data digits; give one"),
        (("random", whole, "--k", "10,x", *encoder), "--k 10,x is no list of whole numbers above 0, such as 10,20"),
        (("random", whole, "--k", "0", *encoder), "--k 0 is no list of whole"),
        (("random", whole, "--temperature", "0.1,-1", *encoder), "--temperature 0.1,-1 is no list of numbers above 0"),
        (("random", whole, "--temperature", "nan", *encoder), "--temperature nan is no list"),
        (("random", whole, "--batch-size", "0", *encoder), "--batch-size 0 is below 1"),
        (("random", whole, "--workers", "-1", *encoder), "--workers -1 is below 0"),
        (("random", whole, "--out", tmp_path / "file", *encoder), "--out .*file cannot be written .*; give a folder"),
        ((tmp_path / "nowhere", whole), "no file or folder .*nowhere: give a run folder"),
        (("random", write(tmp_path / "flat", "train/1.png"), *encoder), "no labelled training images; .* train/CLASS/"),
        (("random", write(tmp_path / "alone", "train/a/1.png"), *encoder), "none of the folders val, test or .*; add"),
        (
            ("random", write(tmp_path / "bare", "train/a/1.png", "val/1.png"), *encoder),
            "no labelled validation images; .* val/CLASS/",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            call(*QUICK, *words)


def test_the_words_of_the_command_come_in_any_order() -> None:
    parser = argparse.ArgumentParser()
    knn.add_arguments(parser)
    for words in (("run", "digits", "--k", "1"), ("run", "--k", "1", "digits"), ("--k", "1", "run", "digits")):
        found = parser.parse_args(words)
        assert (found.source, found.place, found.k) == ("run", "digits", "1")
    assert parser.parse_args(["run"]).place is None


def test_help_does_not_import_torch() -> None:
    code = "import sys, simsiam.commands.knn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
