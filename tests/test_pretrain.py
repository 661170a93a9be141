"""pretrain.py and lincls.py as a user meets them: what a run leaves behind, and how mistakes end."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsiam import load_encoder
from simsiam.export.write import encoder_hash

TINY = (
    "--recipe", "quickstart", "--data", "digits", "--batch-size", 64, "--views.size", 16, "--views.resize", 16,
    "--hide-progress", "--log-every", 1,
)  # fmt: skip


def test_a_run_leaves_everything_and_its_encoder_is_measured(launch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch("pretrain.py", *TINY, "--max-steps", 3, "--out", run)
    for name in ("config.yaml", "first_views.png", "summary.json", "completed", "checkpoints/latest"):
        assert (run / name).exists(), name
    assert list((run / "tensorboard").glob("events*"))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    for key in ("loss", "std", "effective_rank", "verdict", "lr", "grad_norm", "pairs_per_second", "data_seconds"):
        assert key in line
    again = launch("pretrain.py", "-c", run / "config.yaml")
    assert "from 3 to 3" in again.stdout
    refused = launch("pretrain.py", "-c", run / "config.yaml", "--resume", "never", check=False)
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr

    linear = tmp_path / "linear"
    probe = ("--recipe", "lincls-quickstart", "--data", "digits", "--views.size", 16, "--views.resize", 16)
    launch("lincls.py", *probe, "--pretrained", run, "--epochs", 2, "--hide-progress", "--out", linear)
    summary = json.loads((linear / "summary.json").read_text())
    assert summary["encoder_sha256"] == encoder_hash(load_encoder(run))
    assert summary["val_images"] == 360
    evaluated = launch("lincls.py", "-c", linear / "config.yaml", "--evaluate", ranks=2)
    assert f"top-1 {summary['top1']:.2f}%" in evaluated.stdout


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(launch, tmp_path: Path) -> None:
    done = launch("pretrain.py", *TINY, "--max-steps", 9, "--optim.lr", "1e30", "--out", tmp_path, check=False)
    assert done.returncode == 3
    assert "not finite at step" in done.stderr
    assert (tmp_path / "failed").exists()
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "/no/such/folder"), "neither a folder nor a built-in"),
        (("--encoder", "resnet5O"), "resnet50"),
        (("--optim.lrr", "1"), "optim.lr"),
        (("--recipe", "cifar10r18"), "cifar10-r18"),
        (("--method", "simsia"), "simsiam"),
        (("--batch-size", "33", "--accumulate", "2"), "32 or 34"),
        (("--batch-size", "99999"), "larger than the training set"),
        (("--out", "/dev/null/run"), "cannot be written"),
        (("--data", ""), "No dataset is given"),
        (("--resume", "/no/such/run"), "no checkpoint"),
    ],
)
def test_a_mistake_ends_in_one_sentence(launch, tmp_path: Path, arguments: tuple, says: str) -> None:
    done = launch("pretrain.py", *TINY, "--out", tmp_path / "run", *arguments, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def test_odd_images_train_and_unreadable_ones_are_listed(launch, tmp_path: Path) -> None:
    folder = tmp_path / "images/train"
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (40, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            image.save(folder / name / f"{number}.jpg")
    image.convert("CMYK").save(folder / "a/cmyk.jpg")
    image.convert("L").save(folder / "a/gray.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "b/deep.png")
    Image.new("RGB", (1, 1)).save(folder / "b/one.png")
    whole = io.BytesIO()
    image.save(whole, "JPEG")
    (folder / "a/cut.jpg").write_bytes(whole.getvalue()[:-400])
    (folder / "b/text.jpg").write_text("not an image")
    settings = ("--data", tmp_path / "images", "--batch-size", 6, "--epochs", 1, "--loader", "torchvision")
    launch("pretrain.py", *TINY, *settings, "--out", tmp_path / "run")
    listed = {line.split("\t")[0] for line in (tmp_path / "run/bad_files.txt").read_text().splitlines()}
    assert listed == {"a/cut.jpg", "b/text.jpg"}
    assert json.loads((tmp_path / "run/summary.json").read_text())["replaced_images"] == 2
