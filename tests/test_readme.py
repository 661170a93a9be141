"""The README's commands in its order, on small networks and few images; or what each needs and the test that has it."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.walk import NOT_HERE, commands, smaller, stand_ins
from tests.conftest import ROOT

# Beginning of a command -> why it is not run here. benchmarks/walk.py runs all but the first few.
ELSEWHERE = NOT_HERE | {
    "python pretrain.py --recipe simsiam-kd": "a teacher of CIFAR-10; tests/methods/test_distillation.py",
    "simsiam tables ": "a quarter of an hour; tests/commands/test_tables.py",
    "simsiam teacher ": "CIFAR-10; tests/commands/test_teacher.py",
    "simsiam plan ": "ResNet-50; tests/commands/test_plan.py",
    "simsiam protocol ": "minutes; tests/commands/test_protocol.py",
    "torchrun --nproc_per_node=8 transfer/detect.py ": "VOC or COCO; tests/transfer/test_detect.py",
    "python transfer/detect.py ": "ten minutes; tests/transfer/test_detect.py",
}
# What stands for something that an earlier command did not leave.
PLACES = {"ENCODER": "runs/imagenet-r50-100ep", "runs/protocol-ENCODER": "runs/lincls-imagenet"}
# Pattern of a command -> what makes it quicker still.
QUICKER = {
    r"\.py (?!.*(--help|--debug|--evaluate-only|few-shot))": ("--device", "cpu", "--max-steps", "2"),
    r"check-data": ("--no-throughput", "--workers", "0"),
    r"simsiam (knn|predict)": ("--device", "cpu", "--workers", "0"),
}


def test_every_line_is_a_command_and_every_excuse_is_for_one() -> None:
    assert all(re.match(r"(python|torchrun|simsiam|make|sbatch) ", line) for line in commands())
    for beginning in ELSEWHERE:
        assert any(line.startswith(beginning) for line in commands()), beginning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands are typed in."""
    stand_ins(tmp_path / "walk")
    monkeypatch.chdir(tmp_path / "walk")
    monkeypatch.syspath_prepend(ROOT)
    for name in ("DATA", "LOG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "walk"


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command, in this process on one rank, smaller."""
    words = [PLACES.get(word, word) for word in smaller(line)]
    words = words[2:] if words[0] == "torchrun" else words[1:] if words[0] == "python" else words
    words = words[1:] if words[0] == "-m" else words
    words += [word for fits, more in QUICKER.items() if re.search(fits, line) for word in more]
    script = "simsiam.__main__" if words[0] == "simsiam" else words[0].removesuffix(".py").replace("/", ".")
    main: Callable[[], None] = importlib.import_module(script).main
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
