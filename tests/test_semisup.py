"""semisup.py: the whole network trains on few labels, rates are chosen on held-out training images, and it resumes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import simsiam.training.fit
from simsiam import load_encoder
from simsiam.evaluation.classifier import read_classifier
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from tests.run_files import figures

DIGITS = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
SHORT = ("--recipe", "semisup-cifar10-10pct", *DIGITS, "--precision", "fp32", "--batch-size", 50, "--epochs", 2)
GRID = "lr=0.05,0.5 head_lr=0.1,1"

Call = Callable[..., int]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(7)
    write_encoder(build_encoder("resnet8"), path, metadata={})
    return path


def test_encoder_and_head_train_at_their_own_rates_and_what_comes_out_can_be_used(
    call: Call, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("--sweep", "", "--optim.lr", 0.5, "--optim.head_lr", 2, "--log-every", 1, "--optim.schedule", "steps")
    steps = ("--optim.milestones", "[1]", "--optim.decay", 0.2)
    assert call("semisup.py", *SHORT, *given, *steps, "--pretrained", encoder_file, "--out", tmp_path / "a") == 0
    summary = figures(tmp_path / "a")
    assert summary["train_images"] == 144
    assert summary["pretrained_sha256"] == encoder_hash(load_encoder(encoder_file))
    assert summary["encoder_sha256"] != summary["pretrained_sha256"]
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    rates = [(line["lr/encoder"], line["lr/head"]) for line in lines if "loss" in line]
    scale = 50 / 256
    assert rates[:2] == [pytest.approx((0.5 * scale, 2 * scale), abs=1e-6)] * 2  # 144 images: two steps an epoch
    assert rates[2:] == [pytest.approx((0.1 * scale, 0.4 * scale), abs=1e-6)] * 2

    classifier = read_classifier(tmp_path / "a/classifier.safetensors")
    assert classifier.about["encoder_sha256"] == encoder_hash(load_encoder(tmp_path / "a")) == summary["encoder_sha256"]
    assert len(classifier.classes) == 10
    capsys.readouterr()
    assert call("semisup.py", "-c", tmp_path / "a/config.yaml", "--evaluate-only") == 0
    assert f"top-1 {summary['top1']:.2f}%" in capsys.readouterr().out


def test_a_sweep_cut_off_inside_a_cell_ends_as_an_undisturbed_one(
    call: Call, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = (*SHORT, "--sweep", GRID, "--pretrained", encoder_file, "--checkpoint.every_steps", 1)
    assert call("semisup.py", *given, "--out", tmp_path / "straight") == 0
    cells = json.loads((tmp_path / "straight/sweep.json").read_text())
    assert [(c["lr"], c["head_lr"]) for c in cells] == [(0.05, 0.1), (0.05, 1), (0.5, 0.1), (0.5, 1)]
    best = max(cells, key=lambda cell: cell["held_out_top1"])
    assert [cell for cell in cells if cell["chosen"]] == [best]

    steps, step = [], simsiam.training.fit.train_step
    each = 4  # steps of a cell: two epochs of 116 images

    def cut_off(state, inputs):
        if len(steps) == 2 * each + 1:
            raise KeyboardInterrupt
        steps.append(state.step)
        return step(state, inputs)

    monkeypatch.setattr(simsiam.training.fit, "train_step", cut_off)
    assert call("semisup.py", *given, "--out", tmp_path / "twice") == 130
    monkeypatch.setattr(simsiam.training.fit, "train_step", step)
    capsys.readouterr()
    assert call("semisup.py", *given, "--out", tmp_path / "twice") == 0
    assert capsys.readouterr().out.count("has ended") == 2
    assert (tmp_path / "twice/sweep.json").read_text() == (tmp_path / "straight/sweep.json").read_text()
    for file in ("encoder", "classifier"):
        a, b = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("straight", "twice"))
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    summary = figures(tmp_path / "straight")
    assert (summary["lr"], summary["head_lr"]) == (best["lr"], best["head_lr"])
    assert figures(tmp_path / "twice")["top1"] == summary["top1"]

    same = ("--hang-timeout", 60, "--world-size", 1, "--max-wall-time", "1:00:00", "--val-every", 2)
    assert call("semisup.py", *given, *same, "--out", tmp_path / "twice") == 0
    assert call("semisup.py", *given, "--out", tmp_path / "twice", "--epochs", 3) == 2
    assert "holds a run with other settings (epochs was 2 and is 3)" in capsys.readouterr().err
    assert call("semisup.py", *given, "--out", tmp_path / "twice", "--resume", "never") == 2
    assert "--resume is never" in capsys.readouterr().err


def test_a_cell_that_diverges_is_an_answer_and_not_the_end(call: Call, encoder_file: Path, tmp_path: Path) -> None:
    given = ("--sweep", "lr=1e12,0.1", "--epochs", 4, "--pretrained", encoder_file, "--out", tmp_path)
    assert call("semisup.py", *SHORT, *given) == 0
    cells = json.loads((tmp_path / "sweep.json").read_text())
    assert [(cell["held_out_top1"] is None, cell["chosen"]) for cell in cells] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["none.png"], "none of the"),
        (["a/0.png", "a/0.png"], "more than once"),
        (["a/0.png 0", "b/0.png 0"], "contradict the classes"),
        ([], "names no image"),
    ],
)
def test_a_list_that_does_not_fit_is_one_sentence(
    call: Call, encoder_file: Path, tmp_path: Path, names: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(tmp_path / split / name / "0.png")
    (tmp_path / "list.txt").write_text("\n".join(names))
    given = ("--data", tmp_path, "--subset", tmp_path / "list.txt", "--pretrained", encoder_file)
    assert call("semisup.py", *SHORT, *given, "--out", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told


def test_a_classifier_is_not_validated_on_other_classes_nor_gone_on_with_from_another_encoder(
    call: Call, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = (*SHORT, "--sweep", "", "--max-steps", 1, "--pretrained", encoder_file, "--out", tmp_path / "run")
    assert call("semisup.py", *given) == 0
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(30):
                Image.new("RGB", (20, 20)).save(tmp_path / split / name / f"{number}.png")
    assert call("semisup.py", *given, "--data", tmp_path, "--subset", "", "--evaluate-only") == 2
    assert "holds a run with 10 classes (0, 1, 2, ...)" in capsys.readouterr().err
    random = ("--pretrained", "random", "--encoder", "resnet20")
    assert call("semisup.py", *given, *random) == 2
    assert "other settings (encoder was" in capsys.readouterr().err
    assert call("semisup.py", *given, *random, "--allow-change", "encoder") == 2
    assert "holds a run with another encoder (resnet8" in capsys.readouterr().err
