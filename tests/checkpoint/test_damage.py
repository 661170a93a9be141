"""Whatever is damaged in a checkpoint is found before anything is loaded, and the newest whole one is taken."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from simsiam.checkpoint.manager import Checkpoints
from simsiam.checkpoint.manifest import damage, file_facts, write_manifest
from simsiam.errors import UserError
from simsiam.settings.tree import Checkpoint
from tests.checkpoint.test_manager import build, checkpoints, runtime, train
from tests.ranks import run_ranks

STEPS = (2, 4, 6)
NEWEST = "step_00000006"
FILES = (".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json")


def write(folder: Path, seed: int) -> None:
    state, manager = build(seed), Checkpoints(folder, Checkpoint(keep=9), runtime())
    for step in STEPS:
        train(state, step - state.step)
        manager.save(state)
        manager.wait()
    manager.close()
    dist.barrier()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints of two runs on two ranks."""
    folders = tuple(tmp_path_factory.mktemp("runs") / name for name in ("ours", "another"))
    for seed, folder in enumerate(folders):
        run_ranks(2, write, folder, seed)
    return folders


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(
        content[: chance.choice([0, 1, len(content) // 2, len(content) - 1, chance.randrange(len(content))])]
    )


def flip_a_bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def zero_a_block(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    block = content[start : start + 512]
    content[start : start + 512] = bytes(len(block)) if any(block) else b"\1" * len(block)
    path.write_bytes(content)


def append(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 9)))


def lose(path: Path, chance: random.Random) -> None:
    path.unlink()


def make_a_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_a_link(path: Path, chance: random.Random) -> None:
    kept = path.parent.parent / f"kept-{path.name}"
    shutil.move(path, kept)
    path.symlink_to(kept)


ANY_FILE: list[Callable[[Path, random.Random], None]] = [
    cut, flip_a_bit, zero_a_block, append, lose, make_a_folder, make_a_link
]  # fmt: skip


def a_damage(chance: random.Random, folder: Path, another: Path) -> str:
    """Does one thing to the newest checkpoint of `folder`; says what."""
    newest = folder / NEWEST
    file = chance.choice(FILES)
    kinds = [*ANY_FILE, *[flip_a_bit] * 5, "foreign", "another step's", "extra", "swapped", "told otherwise", "renamed"]
    kind = chance.choice(kinds)
    if callable(kind):
        kind(newest / file, chance)
        return f"{kind.__name__} {file}"
    if kind == "foreign":
        shutil.copy(another / NEWEST / file, newest / file)
    elif kind == "another step's":
        shutil.copy(folder / "step_00000004" / file, newest / file)
    elif kind == "extra":
        shutil.copy(newest / FILES[1], newest / f"__{chance.randint(2, 9)}_0.distcp")
    elif kind == "swapped":
        os.rename(newest / FILES[1], newest / "x")
        os.rename(newest / FILES[2], newest / FILES[1])
        os.rename(newest / "x", newest / FILES[2])
    elif kind == "told otherwise":  # a manifest that is whole in itself, of other bytes
        facts = {name: file_facts(newest / name) for name in FILES[:3]}
        facts[chance.choice(FILES[:3])]["sha256"] = chance.randbytes(32).hex()
        write_manifest(newest, 6, 2, facts)
    else:
        os.rename(newest, folder / "step_00000007")
    return kind


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_damages_are_found_and_the_one_before_is_taken(
    runs: tuple[Path, Path], tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    ours, another = runs
    chance = random.Random(seed)
    for number in range(100):
        folder = tmp_path / str(number)
        shutil.copytree(ours, folder)
        what = a_damage(chance, folder, another)
        found = checkpoints(folder).find("auto")
        assert found == folder / "step_00000004", what
        told = capsys.readouterr().err
        assert told.startswith(f"warning: checkpoint {folder}/step_0000000"), what
        assert told.count("\n") == 1, what
        shutil.rmtree(folder)


def test_what_was_not_touched_is_whole(runs: tuple[Path, Path]) -> None:
    # The control of the test above.
    for step in STEPS:
        assert damage(runs[0] / f"step_{step:08d}") is None
    assert checkpoints(runs[0]).find("auto") == runs[0] / NEWEST


def test_what_is_taken_instead_is_loaded_to_the_bit(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / NEWEST / ".metadata").write_bytes(b"")
    manager, state = checkpoints(tmp_path / "run"), build(seed=9)
    manager.load(manager.find("auto"), state)
    expected = build(seed=8)
    manager.load(runs[0] / "step_00000004", expected)
    assert state.step == 4
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), expected.tensors().values()))


def test_with_none_whole_the_run_is_refused_and_not_begun_anew(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    for step in STEPS:
        flip_a_bit(tmp_path / f"run/step_{step:08d}/__1_0.distcp", random.Random(step))
    with pytest.raises(UserError, match="none of the 3 checkpoints in .* is whole") as error:
        checkpoints(tmp_path / "run").find("auto")
    assert "\n" not in str(error.value)
    for path in (tmp_path / "run").glob("step_*"):
        (path / "manifest.json").unlink()  # `latest` still tells that there were some
    with pytest.raises(UserError, match="is whole"):
        checkpoints(tmp_path / "run").find("auto")


@pytest.mark.parametrize("pointer", [None, "step_00000002\n", "step_00000099\n", "../../elsewhere\n", "\0\n", ""])
def test_latest_is_for_people_and_decides_nothing(runs: tuple[Path, Path], tmp_path: Path, pointer: str | None) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run/latest").unlink()
    if pointer is not None:
        (tmp_path / "run/latest").write_text(pointer)
    assert checkpoints(tmp_path / "run").find("auto") == tmp_path / "run" / NEWEST


def test_a_run_that_was_killed_before_its_first_save_was_complete_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002/__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".step_00000004.tmp").mkdir()
    assert checkpoints(tmp_path).find("auto") is None
