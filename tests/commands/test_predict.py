"""`simsiam predict`: the rows it writes, and what it refuses."""

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from simsiam.commands import predict
from simsiam.errors import UserError
from simsiam.evaluation.classifier import about_views, write_classifier
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views

CLASSES = ("cat", "dog, wet", "egg")
VIEWS = Views(size=16, resize=20, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def call(*words: object) -> None:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    predict.run(parser.parse_args([*map(str, words), "--device", "cpu"]))


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def draw(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(4)
    encoder = build_encoder("resnet8", zero_init_residual=False)
    for _ in range(20):
        encoder(torch.randn(16, 3, 16, 16))  # moves the running statistics
    head = nn.Linear(encoder.feature_dim, len(CLASSES))
    nn.init.normal_(head.weight)
    return nn.Sequential(encoder, head).eval()


Trained = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path, network: nn.Sequential) -> Trained:
    """`trained(key=value)` makes a run folder of lincls.py, with other words in the classifier's metadata."""

    def make(classes: tuple[str, ...] = CLASSES, head: nn.Linear | None = None, **about: str) -> Path:
        encoder, run = network[0], tmp_path / "run"
        write_encoder(encoder, tmp_path / "pretrained.safetensors", metadata={})
        run.mkdir(exist_ok=True)
        about = {
            "encoder": "resnet8",
            "encoder_sha256": encoder_hash(encoder),
            "pretrained": str(tmp_path / "pretrained.safetensors"),
            **about_views(VIEWS),
            **about,
        }
        write_classifier(head or network[1], classes, run / "classifier.safetensors", about)
        return run

    return make


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nested and loose ones, PNG and JPEG, upright and wide."""
    for number, name in enumerate(["b.png", "deep/er/a.jpg", "deep/c.jpeg", "a.JPG", "deep-er/d.webp"]):
        draw(tmp_path / "images" / name, number, size=(40, 30) if number % 2 else (18, 50))
    (tmp_path / "images" / "empty").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"no image")
    return tmp_path / "images"


NAMES = ["a.JPG", "b.png", "deep-er/d.webp", "deep/c.jpeg", "deep/er/a.jpg"]


@torch.no_grad()
def plainly(network: nn.Sequential, path: Path) -> torch.Tensor:
    """Probabilities of an image by torchvision's transforms alone."""
    transform = v2.Compose(
        [v2.PILToTensor(), v2.Resize(VIEWS.resize), v2.CenterCrop(VIEWS.size), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(VIEWS.mean, VIEWS.std)]
    )  # fmt: skip
    return network(transform(Image.open(path).convert("RGB")).unsqueeze(0)).softmax(1)[0]


@pytest.mark.parametrize("words", [(), ("--batch-size", 2, "--workers", 2), ("--batch-size", 1, "--workers", 0)])
def test_rows_are_what_torch_computes_in_the_order_of_the_names(
    words: tuple, tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path
) -> None:
    out = tmp_path / "new" / "p.csv"
    call(trained(), images, "--out", out, "--probabilities", *words)
    header, *found = rows(out)
    assert header == ["file", "label", "probability", *CLASSES]
    assert [row[0] for row in found] == NAMES
    for name, label, probability, *every in found:
        expected = plainly(network, images / name)
        assert label == CLASSES[int(expected.argmax())]
        torch.testing.assert_close(torch.tensor([float(p) for p in every]), expected, atol=2e-6, rtol=0)
        assert probability == max(every, key=float)
        assert all(len(p.split(".")[1]) == 6 for p in every)
    assert len({row[1] for row in found}) > 1
    assert [path.name for path in out.parent.iterdir()] == ["p.csv"]


def test_half_precision_is_near(tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path) -> None:
    call(trained(), images, "--out", tmp_path / "p.csv", "--probabilities", "--precision", "bf16")
    found = torch.tensor([[float(p) for p in row[3:]] for row in rows(tmp_path / "p.csv")[1:]])
    expected = torch.stack([plainly(network, images / name) for name in NAMES])
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert not torch.allclose(found, expected, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(len(NAMES)), atol=3e-6, rtol=0)  # a head in float32


def test_top_k_is_ranked(tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path) -> None:
    call(trained(), images, "--out", tmp_path / "p.csv", "--top", 3)
    header, *found = rows(tmp_path / "p.csv")
    assert header == ["file", "label_1", "probability_1", "label_2", "probability_2", "label_3", "probability_3"]
    for row in found:
        expected = plainly(network, images / row[0]).argsort(descending=True)
        assert row[1::2] == [CLASSES[label] for label in expected]
        assert [float(p) for p in row[2::2]] == sorted(map(float, row[2::2]), reverse=True)


def test_one_image_by_the_classifiers_own_file(tmp_path: Path, trained: Trained, images: Path) -> None:
    call(trained() / "classifier.safetensors", images / "deep" / "c.jpeg", "--out", tmp_path / "p.csv")
    call(trained(), images, "--out", tmp_path / "all.csv")
    assert rows(tmp_path / "p.csv")[1] == ["c.jpeg", *rows(tmp_path / "all.csv")[4][1:]]


def test_stdout_has_the_rows_and_nothing_else(
    tmp_path: Path, trained: Trained, images: Path, capfd: pytest.CaptureFixture
) -> None:
    call(trained(), images, "--out", tmp_path / "p.csv")
    assert capfd.readouterr().out == ""
    call(trained(), images, "--out", "-")
    printed = capfd.readouterr()
    assert printed.out == (tmp_path / "p.csv").read_text()
    assert "5 rows to stdout" in printed.err


def test_a_reader_that_has_had_enough_is_no_mistake(trained: Trained, images: Path) -> None:
    command = [sys.executable, "-m", "simsiam", "predict", trained(), images, "--out", "-", "--device", "cpu"]
    command += ["--batch-size", "1", "--workers", "0"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        started.stdout.close()
        assert started.stderr.read() == b""
        assert started.wait() == 1


def damaged(images: Path) -> None:
    whole = draw(images / "cut.jpg", 3, size=(200, 200)).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("no image")
    (images / "void.png").write_bytes(b"")
    (images / "gone.png").symlink_to("nowhere")
    draw(images / "cmyk.jpg", 4, mode="CMYK")


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_unreadable_images_have_a_row_without_label(
    batch: int, tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path, capsys: pytest.CaptureFixture
) -> None:
    damaged(images)
    call(trained(), images, "--out", tmp_path / "p.csv", "--probabilities", "--batch-size", batch, "--workers", 0)
    found = {row[0]: row[1:] for row in rows(tmp_path / "p.csv")[1:]}
    assert list(found) == sorted([*NAMES, "cut.jpg", "text.png", "void.png", "gone.png", "cmyk.jpg"])
    for name in ("cut.jpg", "text.png", "void.png", "gone.png"):
        assert found[name] == [""] * 5
    assert found["cmyk.jpg"][0] == CLASSES[int(plainly(network, images / "cmyk.jpg").argmax())]
    said = capsys.readouterr().err
    assert "10 rows to" in said
    assert "4 images, with an empty label" in said
    assert "void.png: the file is empty" in said


def test_strict_writes_all_rows_and_fails(tmp_path: Path, trained: Trained, images: Path) -> None:
    call(trained(), images, "--out", tmp_path / "p.csv", "--strict")
    damaged(images)
    with pytest.raises(UserError, match=r"4 images of .* cannot be read, such as cut\.jpg: "):
        call(trained(), images, "--out", tmp_path / "p.csv", "--strict")
    assert len(rows(tmp_path / "p.csv")) == 11


def test_nothing_but_unreadable_images(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    call(trained(), tmp_path / "images", "--out", tmp_path / "p.csv", "--top", 2)
    assert rows(tmp_path / "p.csv")[1:] == [["a.png", "", "", "", ""]]


def test_names_with_comma_quote_and_newline_and_of_no_encoding_come_back(tmp_path: Path, trained: Trained) -> None:
    names = sorted(['a, "b"\nc.png', "ü.png", "\udcff.png"])
    for name in names:
        draw(tmp_path / "images" / name)
    call(trained(), tmp_path / "images", "--out", tmp_path / "p.csv")
    assert [row[0] for row in rows(tmp_path / "p.csv")[1:]] == names
    assert all(len(row) == 3 for row in rows(tmp_path / "p.csv"))


def test_links_are_followed_but_not_round_and_round(tmp_path: Path, trained: Trained, images: Path) -> None:
    draw(tmp_path / "elsewhere" / "x.png")
    for name in ("one", "two"):
        (images / name).symlink_to(tmp_path / "elsewhere")
    (images / "deep" / "back").symlink_to(images)
    call(trained(), images, "--out", tmp_path / "p.csv")
    assert [row[0] for row in rows(tmp_path / "p.csv")[1:]] == sorted([*NAMES, "one/x.png", "two/x.png"])


def test_class_folders_give_a_line_of_accuracy(tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "images"
    for number in range(12):
        draw(root / CLASSES[number % 2] / f"sub/{number:02d}.png", number)
    (root / CLASSES[0] / "bad.png").write_bytes(b"")
    call(trained(), root, "--out", tmp_path / "p.csv")
    found = [row for row in rows(tmp_path / "p.csv")[1:] if row[1]]
    right = sum(row[0].split("/")[0] == row[1] for row in found)
    assert 0 < right < len(found) == 12
    assert f"top-1       {100 * right / 12:.2f}% of 12 images" in capsys.readouterr().err
    draw(root / "loose.png")
    call(trained(), root, "--out", tmp_path / "p.csv")
    assert "top-1" not in capsys.readouterr().err


def test_fine_tuned_encoder_beside_the_classifier_comes_before_the_one_it_began_with(
    tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path
) -> None:
    call(trained(), images, "--out", tmp_path / "a.csv")
    run = trained(pretrained="random")
    write_encoder(network[0], run / "encoder.safetensors", metadata={})
    call(run, images, "--out", tmp_path / "b.csv")
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "b.csv")


def test_encoder_may_be_anywhere(tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path) -> None:
    torch.save({"state_dict": {f"encoder.{k}": t for k, t in network[0].state_dict().items()}}, tmp_path / "e.pth")
    run = trained(pretrained="/gone/away")
    with pytest.raises(UserError, match="came from /gone/away, which is not here; give it as --encoder"):
        call(run, images)
    call(run, images, "--encoder", tmp_path / "e.pth", "--out", tmp_path / "p.csv")
    assert len(rows(tmp_path / "p.csv")) == 6


def test_another_encoder_is_refused_with_both_hashes(
    tmp_path: Path, network: nn.Sequential, trained: Trained, images: Path
) -> None:
    other = build_encoder("resnet8")
    write_encoder(other, tmp_path / "other.safetensors", metadata={})
    with pytest.raises(UserError) as error:
        call(trained(), images, "--encoder", tmp_path / "other.safetensors", "--out", tmp_path / "p.csv")
    for words in (encoder_hash(other), encoder_hash(network[0]), "other.safetensors", "classifier.safetensors"):
        assert words in str(error.value)
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("resnet20", "the encoder resnet8 of SHA-256 .* holds resnet20 of"),  # as wide
     ("resnet18", "classifies 64 features, and the encoder .* gives 512")],
)  # fmt: skip
def test_an_encoder_of_another_kind_is_refused(
    name: str, words: str, tmp_path: Path, trained: Trained, images: Path
) -> None:
    write_encoder(build_encoder(name), tmp_path / "other.safetensors", metadata={})
    with pytest.raises(UserError, match=words):
        call(trained(), images, "--encoder", tmp_path / "other.safetensors")


def test_the_same_tensors_under_another_name_are_refused(tmp_path: Path, trained: Trained, images: Path) -> None:
    blurred = build_encoder("timm:resnetblur18")
    write_encoder(blurred, tmp_path / "blurred.safetensors", metadata={})
    run = trained(head=nn.Linear(512, 3), encoder="resnet18", encoder_sha256=encoder_hash(blurred))
    with pytest.raises(UserError, match="the encoder resnet18 of .* holds timm:resnetblur18 of"):
        call(run, images, "--encoder", tmp_path / "blurred.safetensors")


def test_classifier_that_does_not_fit_itself_is_refused(trained: Trained, images: Path) -> None:
    with pytest.raises(UserError, match="classifies 32 features, and the encoder .* gives 64"):
        call(trained(head=nn.Linear(32, 3)), images)
    with pytest.raises(UserError, match="names 2 classes and has weights of 3"):
        call(trained(classes=("a", "b")), images)
    with pytest.raises(UserError, match="random weights, which were not kept"):
        call(trained(pretrained="random"), images)
    for about in ({"pixel_std": "[1, 2]"}, {"size": "x"}, {"resize": "null"}):
        with pytest.raises(UserError, match="does not say which images it wants"):
            call(trained(**about), images)


def test_mistakes_are_one_sentence_and_write_nothing(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = trained(), tmp_path / "p.csv"
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    mistakes = [
        ((run, images, "--top", 4), "--top 4 is more than the 3 classes"),
        ((run, images, "--top", 0), "--top 0 is below 1"),
        ((run, images, "--batch-size", 0), "--batch-size 0 is below 1"),
        ((run, images, "--workers", -1), "--workers -1 is below 0"),
        ((run, tmp_path / "empty"), "No image in .*empty or below it"),
        ((run, tmp_path / "nowhere"), "no image or folder .*nowhere"),
        ((tmp_path / "empty", images), "no file .*empty/classifier.safetensors"),
        ((tmp_path / "junk.safetensors", images), "junk.safetensors is no classifier"),
        ((run, images, "--encoder", tmp_path / "nowhere"), "no file or folder .*nowhere"),
        ((run, images, "--encoder", tmp_path / "junk.safetensors"), "no whole safetensors file"),
    ]
    for words, said in mistakes:
        with pytest.raises(UserError, match=said) as error:
            call(*words, "--out", out)
        assert "\n" not in str(error.value)
    for place in (tmp_path / "empty", "/dev/null", tmp_path / "junk.safetensors" / "p.csv"):
        with pytest.raises(UserError, match="folder or device|cannot be written"):
            call(run, images, "--out", place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="works in one process"):
        call(run, images, "--out", out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*unfinished"))


def test_a_failure_on_the_way_leaves_the_old_file(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text("old")
    monkeypatch.setattr(nn.Linear, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(trained(), images, "--out", tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "old"
    assert not list(tmp_path.glob(".*unfinished"))


def test_the_command_ends_with_its_code(trained: Trained, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simsiam", "predict", str(trained()), str(images), "--device", "cpu", "--out", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [row[0] for row in csv.reader(io.StringIO(done.stdout))] == ["file", *NAMES]
    (images / "bad.png").write_bytes(b"")
    done = subprocess.run([*command, "--strict"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: 1 image of" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_import_torch() -> None:
    code = "import sys, simsiam.commands.predict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metadata_is_what_the_protocols_write() -> None:
    assert {key: json.loads(value) for key, value in about_views(VIEWS).items()} == {
        "resize": 20, "size": 16, "pixel_mean": [0.4, 0.5, 0.6], "pixel_std": [0.2, 0.25, 0.3],
    }  # fmt: skip
