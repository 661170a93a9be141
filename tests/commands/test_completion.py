"""What bash completes on the Tab key."""

import subprocess
import sys
from pathlib import Path

import pytest

from simsiam.__main__ import main
from simsiam.settings.parse import setting_types
from simsiam.settings.tree import Pretrain

_ASK = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _simsiam; echo "${COMPREPLY[@]}"'


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """What a line, its last word the one at the cursor, is completed to."""
    monkeypatch.setattr(sys, "argv", ["simsiam", "completion"])
    main()
    (tmp_path / "completion").write_text(capsys.readouterr().out)

    def ask(*words: str) -> list[str]:
        command = ["bash", "-c", _ASK, "bash", str(tmp_path / "completion"), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("torchrun --nproc_per_node=8 pretrain.py --optim.na", ["--optim.name"]),
        ("torchrun -m pretrain --optim.na", ["--optim.name"]),
        ("./pretrain.py --optim.name ", ["sgd", "lars", "adam", "adamw"]),
        ("python /home/me/pretrain.py --optim.name = a", ["adam", "adamw"]),
        ("python pretrain.py --method sw", ["swav"]),
        ("python lincls.py -c lincls-cifar", []),
        ("python lincls.py --recipe lincls-cifar", ["lincls-cifar10", "lincls-cifar100"]),
        ("python transfer/detect.py --precision b", ["bf16"]),
        ("simsiam pl", ["plan"]),
        ("simsiam plan --gp", ["--gpus"]),
        ("simsiam tables sto", []),
        ("python pretrain.py --data Down", []),  # left to bash, which completes files
        ("python another.py --optim.na", []),
        ("torchrun --nproc", []),
    ],
)
def test_a_line_is_completed(completed, line: str, offered: list[str]) -> None:
    assert completed(*line.split(" ")) == offered


def test_every_setting_is_offered(completed) -> None:
    offered = completed("python", "pretrain.py", "--")
    assert {f"--{name}" for name in setting_types(Pretrain)} <= set(offered)
    assert completed("simsiam", "").count("quickstart") == 1
