"""Checkpoints in an object store, which knows neither folders nor renaming: whole or passed over, whenever cut off."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from simsiam.checkpoint.manager import Checkpoints
from simsiam.checkpoint.manifest import damage
from simsiam.checkpoint.remote import Remote
from simsiam.errors import UserError
from simsiam.settings.tree import Checkpoint
from tests.checkpoint.test_manager import build, different, names, runtime, tensors, train

URL = "memory://bucket/run"


class Store:
    """What is in the bucket, and what was done to it."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.puts: list[str] = []
        self.fails: Callable[[str, str], bool] = lambda what, path: False
        """Asked before each operation (put, get, remove, list) on a path whether it fails."""

    def before(self, what: str, path: str) -> None:
        if self.fails(what, path):
            raise OSError(f"the store refuses to {what}")
        if what == "put":
            self.puts.append(path.removeprefix("/bucket/run/"))

    def checkpoints(self) -> list[str]:
        return sorted({path.split("/")[3] for path in self.objects if path.count("/") == 4})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """fsspec's memory:// without what an object store lacks."""
    store = Store()
    monkeypatch.setattr(MemoryFileSystem, "store", store.objects)
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    for name in ("mkdir", "makedirs", "rmdir"):
        monkeypatch.setattr(MemoryFileSystem, name, lambda *_, **__: None)
    for name in ("mv", "mv_file", "move", "rename"):
        monkeypatch.setattr(MemoryFileSystem, name, None, raising=False)

    def told(name: str, what: str, position: int = 0) -> None:
        plain = getattr(MemoryFileSystem, name)

        def operation(self: MemoryFileSystem, *given: Any, **named: Any) -> Any:
            store.before(what, self._strip_protocol(given[position]))
            return plain(self, *given, **named)

        monkeypatch.setattr(MemoryFileSystem, name, operation)

    told("put_file", "put", position=1)
    told("pipe_file", "put")
    told("get_file", "get")
    told("rm_file", "remove")
    told("ls", "list")
    return store


def manager(folder: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, Checkpoint(**{"keep": 2, "folder": URL, **settings}), runtime())


def save(checkpoints: Checkpoints, *steps: int) -> None:
    state = build()
    for state.step in steps:
        checkpoints.save(state)
        checkpoints.wait()


def test_another_machine_goes_on_from_it_to_the_bit(store: Store, tmp_path: Path) -> None:
    assert manager(tmp_path / "here").find("auto") is None
    state, here = train(build(), 3), manager(tmp_path / "here")
    here.save(state)
    here.wait()
    there, again = manager(tmp_path / "there"), build(seed=1)
    found = there.find("auto")
    assert found == tmp_path / "there/step_00000003"
    there.load(found, again)
    assert different(tensors(train(state, 2)), tensors(train(again, 2))) == []


def test_the_manifest_comes_after_what_it_lists_and_latest_last(store: Store, tmp_path: Path) -> None:
    save(manager(tmp_path), 2)
    step = "step_00000002"
    assert sorted(store.puts[:2]) == [f"{step}/.metadata", f"{step}/__0_0.distcp"]
    assert store.puts[2:] == [f"{step}/manifest.json", "latest"]


@pytest.mark.parametrize("cut", [".metadata", "__0_0.distcp", "manifest.json", "latest"])
def test_an_upload_that_is_cut_off_is_told_and_costs_no_earlier_checkpoint(
    store: Store, tmp_path: Path, cut: str
) -> None:
    here = manager(tmp_path / "here")
    save(here, 2)
    store.fails = lambda what, path: what == "put" and path.endswith(cut)
    with pytest.raises(UserError, match="the store refuses to put") as error:
        save(here, 4)
    assert "\n" not in str(error.value)
    assert store.objects["/bucket/run/latest"].getvalue() == b"step_00000002\n"
    whole = "step_00000004" if cut == "latest" else "step_00000002"
    assert manager(tmp_path / "there").find("auto") == tmp_path / "there" / whole
    store.fails = lambda what, path: False
    save(here, 6, 8)
    assert store.checkpoints() == ["step_00000006", "step_00000008"]
    assert store.objects["/bucket/run/latest"].getvalue() == b"step_00000008\n"
    assert manager(tmp_path / "elsewhere").find("auto") == tmp_path / "elsewhere/step_00000008"


def test_a_removal_that_is_cut_off_leaves_nothing_that_is_taken_for_whole(store: Store, tmp_path: Path) -> None:
    here = manager(tmp_path / "here", keep=1)
    save(here, 2)
    store.fails = lambda what, path: what == "remove" and not path.endswith("manifest.json")
    with pytest.raises(UserError, match="the store refuses to remove"):
        save(here, 4)
    assert store.checkpoints() == ["step_00000002", "step_00000004"]
    assert "/bucket/run/step_00000002/manifest.json" not in store.objects
    assert manager(tmp_path / "there").find("auto") == tmp_path / "there/step_00000004"
    store.fails = lambda what, path: False
    save(here, 6)
    assert store.checkpoints() == ["step_00000006"]


@pytest.mark.parametrize("left", [["__0_0.distcp"], ["manifest.json"], [".metadata", "manifest.json"]])
def test_what_is_left_of_an_old_checkpoint_is_cleared_away(store: Store, tmp_path: Path, left: list[str]) -> None:
    here = manager(tmp_path / "here", keep=1)
    for name in left:
        MemoryFileSystem().pipe_file(f"/bucket/run/step_00000001/{name}", b"half")
    save(here, 2)
    assert store.checkpoints() == ["step_00000002"]


def test_a_save_that_fewer_ranks_make_again_is_whole(store: Store, tmp_path: Path) -> None:
    MemoryFileSystem().pipe_file("/bucket/run/step_00000002/__1_0.distcp", b"of a rank that is no more")
    save(manager(tmp_path / "here"), 2)
    assert manager(tmp_path / "there").find("auto") == tmp_path / "there/step_00000002"


def test_a_new_machine_leaves_as_many_as_are_kept(store: Store, tmp_path: Path) -> None:
    save(manager(tmp_path / "here", keep=3), 2, 4, 6)
    there = manager(tmp_path / "there", keep=3)
    there.find("auto")
    save(there, 8)
    assert store.checkpoints() == ["step_00000004", "step_00000006", "step_00000008"]


def test_what_a_node_has_in_part_comes_whole_from_the_store(store: Store, tmp_path: Path) -> None:
    save(manager(tmp_path), 2, 4)
    (tmp_path / "step_00000004/__0_0.distcp").unlink()  # as where another node's rank has written it
    found = manager(tmp_path).find("auto")
    assert found == tmp_path / "step_00000004"
    assert damage(found) is None


def test_a_node_of_its_own_folder_loads_what_rank_0_found(store: Store, tmp_path: Path) -> None:
    there = manager(tmp_path / "there")
    save(there, 2, 4)  # of a branch that was left
    state, here = train(build(), 4), manager(tmp_path / "here")
    here.save(state)
    here.wait()
    text = (tmp_path / "here/step_00000004/manifest.json").read_text()
    there.runtime = SimpleNamespace(**vars(runtime()), is_main=False, on_main=lambda make: text, barrier=lambda: None)
    again = build(seed=1)
    there.load(tmp_path / "there/step_00000004", again)
    assert different(tensors(state), tensors(again)) == []


def test_kept_epochs_stay_and_are_a_last_resort(store: Store, tmp_path: Path) -> None:
    save(manager(tmp_path / "here", keep=1, keep_every_epochs=1), 10, 20, 25)
    assert store.checkpoints() == ["epoch_0001", "epoch_0002", "step_00000025"]
    store.objects["/bucket/run/step_00000025/__0_0.distcp"].truncate(9)
    found = manager(tmp_path / "there").find("auto")
    assert found == tmp_path / "there/epoch_0002"
    assert damage(found) is None


@pytest.mark.parametrize("what", ["list", "get"])
def test_a_store_that_does_not_answer_is_a_sentence_and_no_new_start(store: Store, tmp_path: Path, what: str) -> None:
    save(manager(tmp_path / "here"), 2)
    store.fails = lambda operation, path: operation == what
    with pytest.raises(UserError, match=f"{URL}.* cannot be read .the store refuses to {what}") as error:
        manager(tmp_path / "there").find("auto")
    assert "\n" not in str(error.value)
    store.fails = lambda operation, path: False
    assert manager(tmp_path / "there").find("auto") == tmp_path / "there/step_00000002"
    assert [name for name in names(tmp_path / "there") if name.startswith(".")] == []


def test_with_none_whole_in_the_store_a_new_machine_refuses(store: Store, tmp_path: Path) -> None:
    save(manager(tmp_path / "here"), 2, 4)
    for step in (2, 4):
        del store.objects[f"/bucket/run/step_0000000{step}/manifest.json"]
    with pytest.raises(UserError, match="none of the 2 checkpoints in .* is whole"):
        manager(tmp_path / "there").find("auto")


def test_a_url_that_fsspec_does_not_know_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened") as error:
        Checkpoints(tmp_path, Checkpoint(folder="nosuchthing://bucket/run"), runtime())
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:  # as fsspec does, which asks for the package once in a process
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(UserError, match=r"s3://bucket/run cannot be opened .*run `pip install s3fs`"):
        Checkpoints(tmp_path, Checkpoint(folder="s3://bucket/run"), runtime())


def test_a_place_of_real_folders_need_not_be_there_yet(tmp_path: Path) -> None:
    Remote(f"file://{tmp_path}/far/away").check_writable()
    assert list((tmp_path / "far/away").iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_a_run_begins(store: Store, tmp_path: Path) -> None:
    checkpoints = manager(tmp_path)
    checkpoints.check_remote()
    assert store.objects == {}
    store.fails = lambda what, path: what == "put"
    with pytest.raises(UserError, match=rf"--checkpoint.folder {URL} cannot be written \(the store refuses to put\)"):
        checkpoints.check_remote()
    with pytest.raises(UserError, match=rf"Checkpoint {URL}/step_00000003 cannot be written .* credentials"):
        save(checkpoints, 3)
