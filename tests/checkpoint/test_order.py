"""A power cut at any moment of a save leaves a whole checkpoint: what is named is on the disk before its name is."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.test_manager import build, checkpoints, save_at


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What a save of step 4 beside one of step 2 has the disk do, in order: `sync X`, `name X` and `delete X`."""
    calls: list[tuple[str, Any]] = []

    def noted(owner: Any, name: str, note: Callable[..., tuple[str, Any]]) -> None:
        plain = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            calls.append(note(*given))
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, call)

    save_at(tmp_path, 2)
    # A file keeps its number when it is named otherwise, and shows its last name in the end.
    noted(os, "fsync", lambda descriptor: ("sync", os.fstat(descriptor).st_ino))
    noted(os, "rename", lambda old, new: ("name", Path(new).name))
    noted(os, "replace", lambda old, new: ("name", Path(new).name))
    noted(shutil, "rmtree", lambda path, *_: ("delete", Path(path).name))
    state, manager = build(), checkpoints(tmp_path, keep=1)
    state.step = 4
    final = manager.save(state)
    manager.close()
    named = {path.stat().st_ino: path.name for path in (tmp_path, tmp_path / "latest", final, *final.iterdir())}
    return [f"{what} {named.get(which, which)}" for what, which in calls]


def test_data_then_name_then_manifest_then_latest_then_the_old_ones(done: list[str], tmp_path: Path) -> None:
    order = [
        "sync .metadata",
        "sync __0_0.distcp",
        "sync step_00000004",
        "name step_00000004",
        f"sync {tmp_path.name}",
        "sync manifest.json",
        "name manifest.json",
        "sync latest",
        "name latest",
        "delete step_00000002",
    ]
    first_times = list(dict.fromkeys(done))
    assert [what for what in first_times if what in order] == order


def test_a_manifest_is_on_the_disk_before_an_older_checkpoint_is_deleted(done: list[str]) -> None:
    begin, end = done.index("name manifest.json"), done.index("delete step_00000002")
    assert "sync step_00000004" in done[begin:end]
