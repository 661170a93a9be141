"""lincls.py on what pretrain.py left behind: from pretraining to a figure that can be measured again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from simsiam import load_encoder
from simsiam.export.write import encoder_hash
from tests.run_files import figures, losses

DIGITS = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
PROBE = ("--recipe", "lincls-quickstart", *DIGITS, "--batch-size", 128, "--epochs", 2, "--log-every", 1)
STEPS = 22  # two epochs of 11

Call = Callable[..., int]


@pytest.fixture
def pretrained(call: Call, tmp_path: Path) -> Path:
    """The run folder of two steps of pretraining a resnet20."""
    short = ("--encoder", "resnet20", "--batch-size", 32, "--max-steps", 2, "--knn-every", 0)
    small = ("--method.projector_hidden", 64, "--method.dim", 64, "--method.predictor_hidden", 32)
    assert call("pretrain.py", "--recipe", "quickstart", *DIGITS, *short, *small, "--out", tmp_path / "pretrained") == 0
    return tmp_path / "pretrained"


def test_a_run_folder_and_its_encoder_file_are_the_same_encoder_and_give_the_same_classifier(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    runs = {"folder": pretrained, "file": pretrained / "encoder.safetensors"}
    for name, given in runs.items():
        assert call("lincls.py", *PROBE, "--pretrained", given, "--out", tmp_path / name) == 0
        assert figures(tmp_path / name)["encoder_sha256"] == encoder_hash(load_encoder(pretrained))
        assert (tmp_path / name / "completed").exists()
    a, b = (load_file(tmp_path / name / "classifier.safetensors") for name in runs)
    assert torch.equal(a["weight"], b["weight"])
    assert figures(tmp_path / "folder")["top1"] == figures(tmp_path / "file")["top1"]


def test_its_config_file_alone_measures_the_same_top1_again(
    call: Call, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call("lincls.py", *PROBE, "--pretrained", pretrained, "--out", tmp_path / "linear") == 0
    capsys.readouterr()
    assert call("lincls.py", "-c", tmp_path / "linear/config.yaml", "--evaluate") == 0
    assert f"step_{STEPS:08d}: top-1 {figures(tmp_path / 'linear')['top1']:.2f}%" in capsys.readouterr().out


def test_a_run_stopped_inside_an_epoch_by_max_steps_ends_as_a_straight_one(
    call: Call, pretrained: Path, tmp_path: Path
) -> None:
    given = (*PROBE, "--pretrained", pretrained)
    assert call("lincls.py", *given, "--out", tmp_path / "straight") == 0
    assert call("lincls.py", *given, "--out", tmp_path / "stopped", "--max-steps", 10) == 0
    assert [step for step, _ in losses(tmp_path / "stopped")] == list(range(1, 11))
    assert call("lincls.py", *given, "--out", tmp_path / "stopped") == 0
    assert losses(tmp_path / "straight") == losses(tmp_path / "stopped")
    assert [step for step, _ in losses(tmp_path / "stopped")] == list(range(1, STEPS + 1))
    straight, stopped = (load_file(tmp_path / name / "classifier.safetensors") for name in ("straight", "stopped"))
    assert [key for key in straight if not torch.equal(straight[key], stopped[key])] == []
    assert figures(tmp_path / "straight")["top1"] == figures(tmp_path / "stopped")["top1"]


def test_random_weights_are_those_of_the_seed(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = (*PROBE, "--pretrained", "random", "--encoder", "resnet20", "--out", tmp_path)
    assert call("lincls.py", *given) == 0
    assert "random (resnet20), frozen" in capsys.readouterr().out
    first = figures(tmp_path)
    assert call("lincls.py", *given, "--evaluate") == 0
    assert f"top-1 {first['top1']:.2f}%" in capsys.readouterr().out
    assert call("lincls.py", *given, "--evaluate", "--seed", 1) == 2
    assert "another encoder" in capsys.readouterr().err


def test_a_wrong_pretrained_is_one_sentence_and_exit_code_2(forked, tmp_path: Path) -> None:
    done = forked("lincls.py", *PROBE, "--pretrained", tmp_path / "none", "--out", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error:") == 1
    assert f"{tmp_path / 'none'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_validation_images_without_labels_are_refused_before_anything_trains(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "val/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    given = ("--pretrained", "random", "--encoder", "resnet8", "--batch-size", 2, "--workers", 0)
    views = ("--views.size", 8, "--views.resize", 8)
    for script in ("lincls.py", "semisup.py"):
        assert call(script, "--data", tmp_path, *given, *views, "--subset", "", "--out", tmp_path / "run") == 2
        assert "has no labelled validation images; classification needs val/CLASS/" in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.jsonl").exists()
