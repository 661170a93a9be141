"""simsiam protocol: each measurement once, also where it was killed in the middle, and nothing under a wrong name."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from simsiam.__main__ import main
from simsiam.commands import protocol, scripts
from simsiam.evaluation.ledger import read
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from tests.forked import fork
from tests.processes import wait_until

SMALL = ("--views.size", "8", "--views.resize", "8", "--workers", "0", "--hide-progress", "--epochs", "6")
SMALL += ("--checkpoint.every_steps", "1", "--sweep", "")


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    write_encoder(build_encoder("resnet8"), tmp_path / "encoder.safetensors", metadata={})
    return tmp_path / "encoder.safetensors"


def words(encoder: Path, out: Path, *more: str) -> list[str]:
    return ["protocol", str(encoder), "--data", "digits", "--out", str(out), *more, "--settings", *SMALL]


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a command starts is forked from the process of the command."""

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        of_simsiam = command[1:3] == ["-m", "simsiam"]
        words = ["simsiam", *command[3:]] if of_simsiam else [Path(command[1]).name, *command[2:]]
        (process,) = fork(1, words, tmp_path / "said", tmp_path / "said", main if of_simsiam else None)
        process.join()
        return SimpleNamespace(returncode=process.exitcode)

    monkeypatch.setattr(scripts, "subprocess", SimpleNamespace(run=run))


def of_a_session() -> None:
    os.setsid()
    main()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simsiam", *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def test_killed_in_the_middle_it_ends_as_an_undisturbed_one_and_measures_nothing_twice(
    forking: None, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = ("--run", "linear,10pct")
    assert call(monkeypatch, *words(encoder_file, tmp_path / "straight", *run)) == 0
    killed = words(encoder_file, tmp_path / "killed", *run)
    (process,) = fork(1, ["simsiam", *killed], tmp_path / "said", tmp_path / "said", of_a_session)
    wait_until(lambda: list((tmp_path / "killed").glob("10pct-*/checkpoints/step_0000000[4-9]")), 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert [result.protocol for result in read(tmp_path / "killed/results.jsonl")] == ["linear"]
    assert call(monkeypatch, *killed) == 0

    straight, resumed = (read(tmp_path / name / "results.jsonl") for name in ("straight", "killed"))
    assert [result.protocol for result in resumed] == ["linear", "10pct"]
    for a, b in zip(straight, resumed, strict=True):
        same = ("top1", "top5", "config_sha256", "encoder_sha256", "data_sha256", "seed", "recipe", "figures")
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
        assert a.encoder_sha256 == encoder_hash(build_encoder_of(encoder_file))
        assert min(a.hours, b.hours) > 0
        files = [load_file(Path(result.run) / "classifier.safetensors") for result in (a, b)]
        assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])

    monkeypatch.setattr(protocol, "run_script", lambda *_, **__: pytest.fail("measured twice"))
    capsys.readouterr()
    assert call(monkeypatch, *killed) == 0
    assert capsys.readouterr().out.count("already") == 2
    assert len(read(tmp_path / "killed/results.jsonl")) == 2


def build_encoder_of(path: Path) -> torch.nn.Module:
    encoder = build_encoder("resnet8")
    encoder.load_state_dict(load_file(path))
    return encoder


def test_knn_and_random_weights_are_measurements_of_their_own(
    forking: None, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(monkeypatch, *words(encoder_file, tmp_path / "out", "--run", "knn,random-knn")) == 0
    own, of_random = read(tmp_path / "out/results.jsonl")
    assert (own.encoder, of_random.encoder) == (str(encoder_file), "random")
    assert own.encoder_sha256 != of_random.encoder_sha256
    assert (own.config_sha256, own.data_sha256) == (of_random.config_sha256, of_random.data_sha256)
    assert own.top1 == own.figures["k=200,T=0.1"]
    assert len(own.figures) == 12
    assert call(monkeypatch, "report", str(tmp_path / "out"), "--out", str(tmp_path / "report.html")) == 0
    assert f"{own.top1:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "knn,5pct"), "'5pct', which is no protocol of the family quickstart"),
        (("--run", "1pct"), "'1pct', which is no protocol of the family quickstart"),
        (("--run", ","), "names no protocol"),
        (("--run", "linear", "--settings", "--optim.rate", "1"), "Unknown setting 'optim.rate'"),
        (("--encoder", "resnet18"), "looks like resnet8"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(protocol, "run_script", lambda *_, **__: pytest.fail("something ran"))
    given = ("protocol", str(encoder_file), "--data", "digits", "--out", str(tmp_path / "out"))
    if "--run" not in arguments:
        arguments = ("--run", "knn", *arguments)
    assert call(monkeypatch, *given, *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told
    assert not (tmp_path / "out").exists()
