"""A sweep chooses on held-out training images, whatever the validation images say; the answer is theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.run_files import figures

Call = Callable[..., int]

SMALL = ("--views.size", 8, "--views.resize", 8, "--views.scale", "[1,1]", "--views.flip", 0, "--workers", 0)
GIVEN = ("--pretrained", "random", "--encoder", "resnet8", "--subset", "", "--batch-size", 16, "--hide-progress")


@pytest.fixture
def contrary(tmp_path: Path) -> Path:
    """Forty dark and forty bright images to train on; to validate on ten of each, with their classes swapped."""
    generator = torch.Generator().manual_seed(0)
    for place, count, darkest in (
        ("train/dark", 40, 0),
        ("train/bright", 40, 180),
        ("val/dark", 10, 180),
        ("val/bright", 10, 0),
    ):
        (tmp_path / "data" / place).mkdir(parents=True)
        for number in range(count):
            gray = darkest + int(torch.randint(0, 60, (), generator=generator))
            Image.new("RGB", (8, 8), (gray, gray, gray)).save(tmp_path / "data" / place / f"{number}.png")
    return tmp_path / "data"


def chosen_cell(run: Path) -> dict[str, Any]:
    (cell,) = (cell for cell in json.loads((run / "sweep.json").read_text()) if cell["chosen"])
    return cell


def test_linear_heads_are_compared_on_held_out_images(call: Call, contrary: Path, tmp_path: Path) -> None:
    sweep = ("--sweep", "lr=1,30", "--held-out", 20, "--epochs", 10)
    given = ("--recipe", "lincls-quickstart", "--data", contrary, *SMALL, *GIVEN, *sweep, "--out", tmp_path / "run")
    assert call("lincls.py", *given) == 0
    chosen = chosen_cell(tmp_path / "run")
    assert chosen["held_out_top1"] > 90
    assert chosen["val_top1"] < 10
    summary = figures(tmp_path / "run")
    assert (summary["train_images"], summary["val_images"], summary["top1"]) == (60, 20, chosen["val_top1"])


def test_fine_tuning_is_compared_on_held_out_images_and_ends_on_all(call: Call, contrary: Path, tmp_path: Path) -> None:
    sweep = ("--sweep", "lr=0.1 head_lr=1,0.1", "--held-out", 20, "--epochs", 10)
    given = ("--recipe", "semisup-quickstart", "--data", contrary, *SMALL, *GIVEN, *sweep, "--out", tmp_path / "run")
    assert call("semisup.py", *given) == 0
    assert chosen_cell(tmp_path / "run")["held_out_top1"] > 90
    of_cells = [figures(folder) for folder in (tmp_path / "run/sweep").iterdir()]
    assert len(of_cells) == 2
    for of_cell in of_cells:
        assert (of_cell["train_images"], of_cell["val_images"]) == (60, 20)
    summary = figures(tmp_path / "run")
    assert (summary["train_images"], summary["val_images"]) == (80, 20)
    assert summary["top1"] < 10
