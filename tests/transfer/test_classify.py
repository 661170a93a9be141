"""transfer/classify.py: three protocols on any set, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

DIGITS = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
GIVEN = (*DIGITS, "--pretrained", "random", "--encoder", "resnet8")
SHORT = ("--batch-size", 100, "--epochs", 1, "--subset", "40%")

Call = Callable[..., int]


def test_linear_and_finetune_sweep_their_rates(call: Call, tmp_path: Path) -> None:
    for protocol, sweep, cells in (("linear", "lr=3,30", 2), ("finetune", "lr=0.1 head_lr=0.1,1", 2)):
        out = tmp_path / protocol
        given = ("--protocol", protocol, *GIVEN, *SHORT, "--sweep", sweep, "--out", out)
        assert call("transfer/classify.py", *given) == 0
        table = out / ("sweep/sweep.json" if protocol == "linear" else "sweep.json")
        assert len(json.loads(table.read_text())) == cells
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["val_images"], summary["train_images"]) == (360, 575)
        assert 0 < summary["mean_per_class"] <= 100


def test_few_shot_says_mean_and_interval_the_same_on_two_ranks(call: Call, forked: Callable, tmp_path: Path) -> None:
    given = ("--protocol=few-shot", *GIVEN, "--shots", "[1,20]", "--trials", 3)
    assert call("transfer/classify.py", *given, "--out", tmp_path / "1") == 0
    forked("transfer/classify.py", *given, "--out", tmp_path / "2", ranks=2)
    one, two = (json.loads((tmp_path / ranks / "few_shot.json").read_text()) for ranks in "12")
    assert one == two
    few, more = one["answers"]
    assert (few["shots"], more["shots"], len(few["top1"])) == (1, 20, 3)
    assert more["mean"] > few["mean"] > 5
    assert few["interval"] > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "--protocol is missing; take one of linear, finetune, few-shot"),
        (("--protocol", "logistic"), "--protocol logistic; take one of"),
        (("--protocol", "few-shot", *GIVEN, "--shots", "[0]"), "--shots is 0; it must be at least 1"),
        (("--protocol", "few-shot", *GIVEN, "--shots", "[500]"), "--shots 500 is more than the"),
        (
            ("--protocol", "few-shot", *GIVEN, "--optim.lr", 3, "--epochs", 2),
            "no use for epochs, optim; leave",
        ),
        (("--protocol", "linear", *GIVEN, "--shots", "[1]"), "Unknown setting 'shots'"),
    ],
)
def test_a_mistake_is_one_sentence(
    call: Call, tmp_path: Path, given: tuple, says: str, capsys: pytest.CaptureFixture
) -> None:
    assert call("transfer/classify.py", *given, *(("--out", tmp_path) if given else ())) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told


def test_few_shot_counts_the_images_that_can_be_read(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for split in ("train", "val"):
        for number in range(15):
            path = tmp_path / f"set/{split}/{number // 5}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (80 * (number // 5), number, 0)).save(path)
    (tmp_path / "set/train/1/7.png").write_bytes(b"no image")
    given = ("--data", tmp_path / "set", *GIVEN[2:], "--out", tmp_path / "out", "--trials", 2)
    assert call("transfer/classify.py", "--protocol", "few-shot", *given, "--shots", 5) == 2
    assert "--shots 5 is more than the 4 training images of '1'; take fewer" in capsys.readouterr().err
    assert call("transfer/classify.py", "--protocol", "few-shot", *given, "--shots", 4) == 0


def test_a_mistake_about_the_folder_is_found_before_the_sweep(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("--protocol", "linear", *GIVEN, *SHORT, "--out", tmp_path)
    assert call("transfer/classify.py", *given, "--sweep", "lr=3,30") == 0
    assert call("transfer/classify.py", *given, "--sweep", "lr=3,30") == 0  # complete, whatever rate was chosen
    capsys.readouterr()
    assert call("transfer/classify.py", *given, "--sweep", "lr=1,10", "--seed", 1) == 2
    told = capsys.readouterr()
    assert "seed was 0 and is 1" in told.err
    assert "held_out/" not in told.out
