"""Whatever the loader: the same training, and damaged files end none."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

QUICK = (
    "--recipe", "quickstart", "--precision", "fp32", "--batch-size", 16, "--optim.lr", 0.03, "--log-every", 1,
    "--checkpoint.every_epochs", 0, "--views.size", 32, "--views.resize", 36, "--workers", 1, "--hide-progress",
)  # fmt: skip


# Other views in each of the first two epochs and from there on.
CHANGING = (
    "--branches", "[{solarize: 0.5}, {blur: 1.0}]",
    "--views-schedule", "[{until: 1, gray: 1.0}, {until: 2, scale: [0.8, 1.0], branches: [{}, {jitter: 0.0}]}]",
)  # fmt: skip


def photographs(root: Path, count: int) -> list[Path]:
    """JPEGs cut from real photographs, of several sizes, half a class each."""
    pixels = load_sample_images().images
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        label = number % 2
        height, width = rng.integers(90, 200, 2)
        top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
        path = root / f"class{label}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[label][top : top + height, left : left + width]).save(path, quality=90)
        paths.append(path)
    return paths


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_ten_steps_with_either_loader_give_the_same_losses(call: Callable[..., int], tmp_path: Path) -> None:
    photographs(tmp_path / "data/train", 64)
    for loader in ("torchvision", "dali"):
        out = ("--loader", loader, "--out", tmp_path / loader)
        assert call("pretrain.py", *QUICK, "--data", tmp_path / "data", "--max-steps", 10, "--knn-every", 0, *out) == 0
    theirs = losses(tmp_path / "torchvision")
    assert len(theirs) == 10
    assert losses(tmp_path / "dali") == pytest.approx(theirs, abs=1e-2)


def damage(path: Path, number: int, rng: np.random.Generator) -> None:
    """One of ten kinds of damage or oddity, in place."""
    data = path.read_bytes()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    kind = number % 10
    if kind in (0, 1, 2):  # cut short, at every tenth in turn
        path.write_bytes(data[: len(data) * (1 + number // 10 % 9) // 10])
    elif kind == 3:  # bits flipped behind the header
        flipped = bytearray(data)
        for place in rng.integers(700, len(data), 5):
            flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
    elif kind == 4:
        path.write_bytes(b"" if number % 20 == 4 else b"<html>not an image</html>")
    elif kind == 5:  # huge dimensions in the frame header
        at = data.index(b"\xff\xc0") + 5
        path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    elif kind == 6:
        image.convert("CMYK").save(path, format="JPEG")
    elif kind == 7:  # 16-bit, by a name that lies
        Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(path, format="PNG")
    elif kind == 8:
        image.save(path, format="GIF", save_all=True, append_images=[image.rotate(90)])
    else:
        image.resize((1, 200)).save(path, format="JPEG")


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_two_hundred_damaged_files_among_as_many_good_ones_end_no_run(
    call: Callable[..., int], tmp_path: Path, loader: str
) -> None:
    rng = np.random.default_rng(1)
    for number, path in enumerate(photographs(tmp_path / "data/train", 400)[::2]):
        damage(path, number, rng)
    for number, path in enumerate(photographs(tmp_path / "data/val", 20)[::2]):
        damage(path, number, rng)
    out = ("--loader", loader, "--out", tmp_path / "run")
    assert call("pretrain.py", *QUICK, "--data", tmp_path / "data", "--epochs", 1, *out) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    listed = (tmp_path / "run/bad_files.txt").read_text().splitlines()
    assert summary["state"] == "completed"
    # Cut short, not an image, or too large: 100. Of the 20 with flipped bits most decode. The other 80 are only odd.
    assert 100 <= summary["replaced_images"] == len(listed) <= 120
    assert sum("pixels announced" in line for line in listed) == 20
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert "knn" in summary

    linear = (
        "--recipe", "lincls-quickstart", "--data", tmp_path / "data", "--pretrained", tmp_path / "run", "--epochs", 1,
        "--batch-size", 16, "--loader", loader, "--workers", 1, "--hide-progress", "--out", tmp_path / "linear",
    )  # fmt: skip
    assert call("lincls.py", *linear) == 0
    summary = json.loads((tmp_path / "linear/summary.json").read_text())
    assert summary["val_images"] + summary["val_skipped"] == 20
    assert 5 <= summary["val_skipped"] <= 6  # of the ten damaged ones, as above


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_a_run_that_stops_anywhere_goes_on_with_the_same_samples_and_views(
    call: Callable[..., int], tmp_path: Path, loader: str
) -> None:
    photographs(tmp_path / "data/train", 70)  # no whole number of batches: the steps cross from epoch to epoch
    common = (*QUICK, *CHANGING, "--data", tmp_path / "data", "--knn-every", 0, "--loader", loader)
    assert call("pretrain.py", *common, "--max-steps", 11, "--out", tmp_path / "straight") == 0
    for stop in (3, 7, 11):
        assert call("pretrain.py", *common, "--max-steps", stop, "--out", tmp_path / "stopped") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    states = [load_file(tmp_path / name / "encoder.safetensors") for name in ("straight", "stopped")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
