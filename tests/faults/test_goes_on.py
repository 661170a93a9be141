"""What goes on in a run folder: nothing due is left out, nothing changes unseen, nobody else's run is touched."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.harness import a_fault, checkpoint, run, said, start, wait, wait_for


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def answers(out: Path) -> Iterator[int]:
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if "knn" in line:
            yield line["step"]


def test_an_evaluation_that_was_due_when_a_run_was_asked_to_end_is_made_up_for(tmp_path: Path, out: Path) -> None:
    """Two steps an epoch; the signal of step 1 is heard at step 2, where kNN is due too."""
    wanted = ("--batch-size", 640, "--knn-every", 1, "--max-steps", 5)
    assert run(1, out, *wanted, fault=a_fault(tmp_path, "term", "step", 1, 0)) == [0]
    assert (out / "preempted").exists()
    assert list(answers(out)) == [0]
    assert run(1, out, *wanted) == [0]
    assert list(answers(out)) == [0, 2, 4, 5]


def test_a_change_is_admitted_once_and_a_path_into_the_folder_is_compared_too(out: Path) -> None:
    assert run(1, out, "--max-steps", 5) == [0]
    changed = ("--max-steps", 10, "--optim.lr", 0.02)
    assert run(1, out, *changed, "--resume", checkpoint(out, 5)) == [2]
    assert "optim.lr was " in said(out)
    assert run(1, out, *changed, "--resume", checkpoint(out, 5), "--allow-change", '["optim.lr"]') == [0]
    assert yaml.safe_load((out / "config.yaml").read_text())["allow_change"] == []
    assert run(1, out, *changed) == [0]
    assert run(1, out, "--max-steps", 15) == [2]


def test_a_job_whose_folder_was_taken_over_saves_nothing_and_marks_nothing(out: Path) -> None:
    """As one that slept, and whose heir on another host is at work."""
    processes = start(1, out, "--max-steps", 10**6)
    wait_for(checkpoint(out, 5), processes)
    heir = json.loads((out / "run.lock").read_text()) | {"host": "elsewhere", "token": "0" * 32}
    (out / "heir").write_text(json.dumps(heir))
    os.replace(out / "heir", out / "run.lock")
    assert wait(processes) == [3]
    assert "was taken over by process " in said(out)
    assert "Traceback" not in said(out)
    assert not (out / "failed").exists()
    assert json.loads((out / "run.lock").read_text())["token"] == "0" * 32
