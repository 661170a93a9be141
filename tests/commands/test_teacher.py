"""simsiam teacher: a supervised run of semisup.py whose folder a distillation takes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simsiam import load_encoder
from simsiam.__main__ import main
from simsiam.commands import teacher
from simsiam.methods.distillation import frozen_teacher
from simsiam.settings.parse import parse
from simsiam.settings.tree import FineTune


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["simsiam", "teacher", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def test_it_trains_once_and_its_folder_is_a_teacher(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scripts = []

    def run_script(script: str, *words: str, ranks: int) -> None:
        scripts.append((script, ranks))
        assert call(script, *words) == 0
        monkeypatch.setattr(sys, "argv", ["simsiam"])

    monkeypatch.setattr(teacher, "run_script", run_script)
    small = ("--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress", "--max-steps", 2)
    words = ("--data", "digits", "--out", tmp_path / "t", "--settings", *small)
    assert command(monkeypatch, *words) == 0
    assert scripts == [("semisup.py", 1)]
    summary = json.loads((tmp_path / "t/summary.json").read_text())
    assert summary["encoder_sha256"] != summary["pretrained_sha256"]
    told = capsys.readouterr().out
    assert f"top-1 {summary['top1']:.2f}%" in told
    assert told.endswith(f"--method simsiam-kd --method.teacher {tmp_path / 't'}\n")

    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network = frozen_teacher(str(tmp_path / "t"))
    assert network.encoder_name == "resnet8"
    assert torch.equal(network(images), load_encoder(tmp_path / "t/encoder.safetensors")(images))
    assert command(monkeypatch, *words) == 0
    assert "is complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "recipe", "folder"),
    [
        (["--data", "cifar10"], "teacher-cifar10-r18", "teacher-cifar10-cifar_resnet18"),
        (["--data", "cifar100:/sets"], "teacher-cifar100-r56", "teacher-cifar100-resnet56"),
        (["--data", "cifar100", "--encoder", "resnet110"], "teacher-cifar100-r110", "teacher-cifar100-resnet110"),
        (["--data", "cifar100", "--encoder", "resnet32"], "teacher-cifar100-r56", "teacher-cifar100-resnet32"),
        (["--recipe", "teacher-quickstart"], "teacher-quickstart", "teacher-shapes-resnet8"),
        (["--data", "cifar10", "--out", "o", "--settings", "--debug"], "teacher-cifar10-r18", "o"),
    ],
)
def test_data_and_encoder_name_the_recipe_and_the_folder(
    words: list[str], recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run_script(script: str, *words: str, ranks: int) -> None:
        ran.append(parse(FineTune, list(words), recipe="semisup-1pct", prog=script))
        Path(ran[0].out).mkdir(parents=True)
        (Path(ran[0].out) / "summary.json").write_text('{"top1": 71.5}')

    monkeypatch.setattr(teacher, "run_script", run_script)
    monkeypatch.setenv("LOG", "logs")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *words) == 0
    (settings,) = ran
    own = parse(FineTune, [], recipe=recipe, prog="semisup.py")
    assert (settings.pretrained, settings.optim, settings.views) == ("random", own.optim, own.views)
    assert settings.out == (folder + "-debug" if settings.debug else f"logs/{folder}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "stl10"], "no teacher's recipe for --data 'stl10'; take cifar10"),
        ([], "no teacher's recipe for --data ''"),
        (["--data", "digits", "--settings", "--optim.rate", "1"], "Unknown setting 'optim.rate'"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(teacher, "run_script", lambda *_, **__: pytest.fail("something ran"))
    assert command(monkeypatch, *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told


@pytest.mark.parametrize(("name", "encoder"), [("r56", "resnet56"), ("r110", "resnet110")])
def test_cifar100_recipes_have_the_schedule_of_the_crd_teachers(name: str, encoder: str) -> None:
    settings = parse(FineTune, [], recipe=f"teacher-cifar100-{name}", prog="semisup.py")
    optim = settings.optim
    assert (settings.encoder, settings.batch_size, settings.epochs) == (encoder, 64, 240)
    assert optim.lr * 64 / 256 == pytest.approx(0.05)
    assert (optim.momentum, optim.weight_decay, optim.head_lr) == (0.9, 5e-4, 0)
    assert (optim.schedule, optim.milestones, optim.decay) == ("steps", (150, 180, 210), 0.1)
    assert settings.subset == settings.sweep == ""
