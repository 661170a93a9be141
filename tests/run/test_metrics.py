"""metrics.jsonl over a run that stops and goes on: each step once, and nothing lost to a disk that is full."""

import errno
import os
from pathlib import Path

import pytest

from simsiam.run import board
from simsiam.run import metrics as module
from simsiam.run.board import Growing
from simsiam.run.metrics import Metrics


@pytest.fixture
def ten_steps(tmp_path: Path) -> Path:
    metrics = Metrics(tmp_path)
    for step in range(1, 11):
        metrics.write(step, {"loss": -0.5})
    metrics.close()
    return tmp_path / "metrics.jsonl"


def go_on(file: Path, step: int) -> list[str]:
    """The steps of the file's lines after one more step."""
    metrics = Metrics(file.parent, step)
    metrics.write(step + 1, {"loss": -0.6})
    metrics.close()
    return [line.split(",")[0].removeprefix('{"step": ') for line in file.read_text().splitlines()]


def test_what_came_after_the_checkpoint_is_cut_off(ten_steps: Path) -> None:
    assert go_on(ten_steps, 6) == [str(step) for step in range(1, 8)]


def test_a_run_that_begins_anew_has_no_lines_of_another(ten_steps: Path) -> None:
    assert go_on(ten_steps, 0) == ["1"]


@pytest.mark.parametrize("cut", [1, 9])
def test_a_line_that_a_crash_cut_off_does_not_swallow_the_next(ten_steps: Path, cut: int) -> None:
    ten_steps.write_bytes(ten_steps.read_bytes()[:-cut])
    steps = [str(step) for step in range(1, 12)]
    assert go_on(ten_steps, 10) == (steps if cut == 1 else [step for step in steps if step != "10"])


def test_a_disk_that_has_no_room_for_the_lines_that_stay_keeps_them_all(
    ten_steps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_atomically", full)
    assert go_on(ten_steps, 6) == [*(str(step) for step in range(1, 11)), "7"]
    assert "metrics cannot be written ([Errno 28] No space left on device); training goes on" in capsys.readouterr().out


def test_a_file_that_grows_is_closed_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is mounted as a folder uploads it then; here it shows in that another file takes its place."""
    file = Growing(tmp_path / "grows")
    file.append(b"first")
    monkeypatch.setattr(board, "_OPEN_SECONDS", 0.0)
    file.append(b" second")
    (tmp_path / "grows").rename(tmp_path / "uploaded")
    file.append(b"third")
    file.close()
    assert [(tmp_path / name).read_text() for name in ("uploaded", "grows")] == ["first second", "third"]
