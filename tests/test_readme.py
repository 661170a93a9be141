"""The README's commands in its order, on small networks and few images; or what each needs and the test that has it."""

import importlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT

# Beginning of a command -> why it is not run here.
ELSEWHERE = {
    "make ": "a fresh machine",
    "sbatch ": "Slurm; tests/test_launch_preemption.py has stand-ins",
    "python pretrain.py --recipe simsiam-kd": "a teacher of CIFAR-10; tests/methods/test_distillation.py",
    "simsiam tables ": "a quarter of an hour; tests/commands/test_tables.py",
    "simsiam teacher ": "CIFAR-10; tests/commands/test_teacher.py",
    "simsiam plan ": "ResNet-50; tests/commands/test_plan.py",
    "simsiam shapes ": "a thousand scenes; tests/commands/test_shapes.py",
    "simsiam protocol ": "minutes; tests/commands/test_protocol.py",
    "torchrun --nproc_per_node=8 transfer/detect.py ": "VOC or COCO; tests/transfer/test_detect.py",
    "python transfer/detect.py ": "ten minutes; tests/transfer/test_detect.py",
}
# What stands for something of the user's, and what leads to another place.
PLACES = {
    "IMAGENET": "images", "ENCODER": "runs/imagenet-r50-100ep", "PHOTOGRAPHS": "images/val", "FOLDER": "images",
    "flowers102": "images", "runs/protocol-ENCODER": "runs/lincls-imagenet", "1234": "12",
}  # fmt: skip
SMALL = ("--data", "images", "--batch-size", 16, "--max-steps", 2, "--workers", 0, "--device", "cpu", "--hide-progress")
VIEWS = ("--views.size", 32, "--views.resize", 32)
SMALLER = {
    "pretrain.py": (*SMALL, *VIEWS, "--encoder", "resnet8", "--knn-every", 0),
    "lincls.py": (*SMALL, *VIEWS),
    "semisup.py": (*SMALL, *VIEWS, "--subset", 0.5, "--batch-size", 8, "--sweep", ""),
    "transfer/classify.py": (*SMALL, *VIEWS),
    "check-data": ("--no-throughput", "--workers", 0),
    "knn": ("--device", "cpu", "--workers", 0),
    "predict": ("--device", "cpu", "--workers", 0),
}


def commands() -> list[str]:
    """The lines of the README's blocks that begin with a program, without what comments say."""
    text = (ROOT / "README.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if not kind]
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.partition("  #")[0].rstrip() for line in lines if line]


def test_every_line_is_a_command_and_every_excuse_is_for_one() -> None:
    assert all(re.match(r"(python|torchrun|simsiam|make|sbatch) ", line) for line in commands())
    for beginning in ELSEWHERE:
        assert any(line.startswith(beginning) for line in commands()), beginning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands are typed in."""
    pixels = np.random.Generator(np.random.Philox(0))
    for split, images in (("train", 24), ("val", 6)):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(images):
                image = Image.fromarray(pixels.integers(0, 256, (40, 48, 3), np.uint8))
                image.save(tmp_path / "images" / split / name / f"{number}.jpg")
    example = re.search(
        r"^```python\n(.*?class BarlowTwins.*?)^```", (ROOT / "docs/methods.md").read_text(), re.M | re.S
    )
    (tmp_path / "barlow.py").write_text(example[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    for name in ("DATA", "LOG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command, on one rank, smaller."""
    words = [PLACES.get(word, word) for word in shlex.split(line)]
    words = words[2:] if words[0] == "torchrun" else words[1:] if words[0] == "python" else words
    words = words[1:] if words[0] == "-m" else words
    script = words[0]
    name = words[1] if script == "simsiam" else script
    if "--help" not in words:
        words += map(str, SMALLER.get(name, ()))
        if name == "pretrain.py" and "barlow.py:BarlowTwins" not in words and "simclr" not in words:
            words += ["--method.projector_hidden", "32", "--method.dim", "32"]
        if "--recipe" not in words and name == "pretrain.py":
            words += ["--encoder", "resnet18"]  # whose stem Detectron2 knows
    if "--download" in words:
        words.remove("--download")
    if "-c" in words and script == "lincls.py":
        words = words[: words.index("--evaluate-only") + 1]
    main: Callable[[], None] = importlib.import_module(
        "simsiam.__main__" if script == "simsiam" else script.removesuffix(".py").replace("/", ".")
    ).main
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_all_run_in_order(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    threads = torch.get_num_threads()
    for line in commands():
        if not line.startswith(tuple(ELSEWHERE)):
            assert run(line, monkeypatch) == 0, f"{line}\n{''.join(capsys.readouterr())[-3000:]}"
    torch.set_num_threads(threads)
    for made in ("resnet50.pth", "resnet50.pkl.json", "findings.tsv", "predictions.csv"):
        assert (here / made).exists(), made
