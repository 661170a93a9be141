"""Disks that are full, writers that fail, run folders that go away: told in a sentence; what was saved stays."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import (
    SHORT,
    STEPS,
    a_fault,
    check_goes_on,
    checkpoint,
    digest,
    holding,
    left_behind,
    logged,
    run,
    said,
    sentences,
    start,
    state_digest,
    wait,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A run folder on a disk of 4 MB, which three checkpoints take half of."""
    out = tmp_path / "run"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", out], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield out
    subprocess.run(["umount", "--lazy", out], check=True)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose save at step 10 failed on rank 1, inside the thread that writes."""
    folder = tmp_path_factory.mktemp("refused")
    assert run(2, folder / "run", *SHORT, fault=a_fault(folder, "no space", "write", 7, 1)) == [0, 0]
    return folder / "run"


def test_a_save_that_fails_in_its_thread_is_told_once_and_the_next_one_works(undisturbed: str, refused: Path) -> None:
    (told,) = sentences(refused, "warning: ")
    assert told.startswith(f"warning: Checkpoint {checkpoint(refused, 10)} cannot be written (")
    assert "No space left on device" in told
    assert told.endswith("; training goes on without it")
    assert sorted(refused.glob("checkpoints/step_*")) == [checkpoint(refused, 15), checkpoint(refused, 16)]
    assert digest(refused, STEPS) == undisturbed
    assert left_behind(refused) == []


def test_what_is_told_of_it_is_no_traceback(refused: Path) -> None:
    assert 'File "' not in said(refused)
    assert "Traceback" not in said(refused)


@pytest.mark.faults
def test_a_disk_that_is_full_for_a_while_costs_neither_the_run_nor_a_line(undisturbed: str, small_disk: Path) -> None:
    fault = a_fault(small_disk.parent, "disk full", "step", 7, 0) | {"until": "Checkpoint"}
    assert run(2, small_disk, *SHORT, fault=fault) == [0, 0]
    told = [line for line in sentences(small_disk, "warning: ") if "Checkpoint" in line]
    # Where the first is told late, the next one is begun before there is room.
    assert [str(checkpoint(small_disk, step)) in line for step, line in zip((10, 15), told)] == [True] * len(told)
    assert told
    assert digest(small_disk, STEPS) == undisturbed
    assert left_behind(small_disk) == []


def test_metrics_that_find_no_room_are_told_once_and_written_later(small_disk: Path) -> None:
    fault = a_fault(small_disk.parent, "disk full", "step", 7, 0) | {"until": "metrics cannot be written"}
    elsewhere = ("--checkpoint.folder", small_disk.parent / "checkpoints", "--max-steps", 40)
    assert run(1, small_disk, *elsewhere, fault=fault) == [0]
    (told,) = sentences(small_disk, "warning: ")
    assert told.startswith(f"warning: {small_disk}: metrics cannot be written (")
    assert "Traceback" not in said(small_disk)
    assert sorted(logged(small_disk)) == list(range(1, 41))
    assert tensorboard_steps(small_disk) == list(range(1, 41))


def tensorboard_steps(out: Path) -> list[int]:
    """The steps whose loss TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [event.step for event in board.Scalars("loss")]


def remove(out: Path) -> None:
    # At once and then by pieces, since the save of step 5 may still be writing there.
    shutil.rmtree(out.rename(out.with_name("gone")), ignore_errors=True)


def replace_by_a_file(out: Path) -> None:
    gone = out.rename(out.with_name("gone"))
    out.touch()
    shutil.rmtree(gone, ignore_errors=True)


def test_a_run_folder_that_a_file_takes_the_place_of_is_a_sentence(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_harmed(out, replace_by_a_file) == [2, 2]
    (told,) = sentences(out, "error: ")
    assert str(out) in told
    assert "Traceback" not in said(out)


@pytest.mark.faults
def test_a_run_folder_that_is_removed_is_there_again_with_the_next_save(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_harmed(out, remove) == [0, 0]
    assert undisturbed.startswith(state_digest(checkpoint(out, STEPS)))
    assert (out / "encoder.safetensors").exists()


@pytest.mark.faults
def test_a_run_folder_that_is_removed_costs_no_checkpoint_that_is_elsewhere(undisturbed: str, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "run", ("--checkpoint.folder", tmp_path / "checkpoints")
    assert run_harmed(out, remove, *elsewhere) == [0, 0]
    assert (out / "encoder.safetensors").exists()
    assert undisturbed.startswith(state_digest(tmp_path / f"checkpoints/step_{STEPS:08d}"))


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a folder that is read-only")
def test_a_run_folder_that_becomes_read_only_is_a_sentence(undisturbed: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    codes = run_harmed(out, lambda path: [path.chmod(0o500), (path / "checkpoints").chmod(0o500)])
    (out / "checkpoints").chmod(0o700)
    out.chmod(0o700)
    assert codes == [2, 2]
    assert "Traceback" not in said(out)
    check_goes_on(out, undisturbed)


def run_harmed(out: Path, harm: Callable[[Path], object], *arguments: object) -> list[int]:
    """The exit codes of a run to whose folder something happens after step 7."""
    fault = a_fault(out.parent, "hold", "step", 7, 0)
    processes = start(2, out, *SHORT, *arguments, fault=fault)
    go_on = holding(fault, processes)
    harm(out)
    go_on.touch()
    return wait(processes)


def test_with_no_checkpoint_whole_nothing_begins_and_nothing_is_touched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(1, out, "--max-steps", 6) == [0]
    for path in out.glob("checkpoints/step_*/__*"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in out.glob("checkpoints/**/*")}
    assert run(1, out, *SHORT) == [2]
    (told,) = sentences(out, "error: ")
    assert "none of the 2 checkpoints" in told
    assert {path: path.stat().st_mtime_ns for path in out.glob("checkpoints/**/*")} == before
    assert left_behind(out) == []
