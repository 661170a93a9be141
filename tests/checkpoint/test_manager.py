"""A checkpoint is whole or does not exist, says which it is, and gives back every bit on any number of ranks."""

import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.checkpoint.manager import Checkpoints
from simsiam.checkpoint.manifest import damage
from simsiam.distributed.runtime import Runtime
from simsiam.errors import TrainingStopped, UserError
from simsiam.methods.simsiam import SimSiam
from simsiam.settings.derive import derive
from simsiam.settings.tree import Checkpoint, Optim, Pretrain
from simsiam.training.build import build_state
from simsiam.training.state import TrainState
from simsiam.training.step import train_step
from tests.ranks import run_ranks


def runtime() -> Runtime:
    ranked = dist.is_initialized()
    return Runtime(dist.get_rank() if ranked else 0, dist.get_world_size() if ranked else 1, 0, torch.device("cpu"))


def build(seed: int = 0, dim: int = 8, precision: str = "fp32", **optim: object) -> TrainState:
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    encoder.feature_dim = 6
    settings = Pretrain(batch_size=12, epochs=2, precision=precision, optim=Optim(lr=2.0, **optim))
    method = SimSiam(encoder, dim=dim, predictor_hidden=4, projector_layers=2)
    return build_state(method, settings, derive(settings, runtime().world_size, 120), runtime())


def train(state: TrainState, steps: int) -> TrainState:
    """Steps on this rank's part of batches that depend on the step alone."""
    me = runtime()
    for _ in range(steps):
        views = torch.randn(2, 12, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
        train_step(state, [(views.chunk(me.world_size, dim=1)[me.rank],)])
    return state


def tensors(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, Checkpoint(keep=keep), runtime())


def save(state: TrainState, folder: Path, keep: int = 2) -> Path:
    """Saves to the end."""
    manager = checkpoints(folder, keep)
    path = manager.save(state)
    manager.close()
    return path


def save_at(folder: Path, *steps: int, keep: int = 2) -> None:
    state = build()
    for state.step in steps:
        save(state, folder, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_a_loaded_state_goes_on_to_the_bit(tmp_path: Path, name: str) -> None:
    state = train(build(name=name), 3)
    path = save(state, tmp_path)
    straight = tensors(train(state, 4))
    loaded = build(seed=1, name=name)
    checkpoints(tmp_path).load(path, loaded)
    assert loaded.step == 3
    assert different(straight, tensors(train(loaded, 4))) == []


def test_a_state_that_lost_its_momentum_goes_on_differently(tmp_path: Path) -> None:
    # The control of the test above: it would notice.
    state = train(build(), 3)
    path = save(state, tmp_path)
    straight = tensors(train(state, 4))
    loaded = build()
    checkpoints(tmp_path).load(path, loaded)
    for entries in loaded.optimizer.state.values():
        entries["momentum_buffer"].zero_()
    changed = different(straight, tensors(train(loaded, 4)))
    assert "model.encoder.0.weight" in changed


def test_everything_that_moves_is_in_the_checkpoint(tmp_path: Path) -> None:
    state = build()
    before = tensors(state)
    changed = set(different(before, tensors(train(state, 2))))
    parameters = {name for name, _ in state.module.named_parameters()}
    buffers = {name for name, _ in state.module.named_buffers()}
    assert {f"model.{name}" for name in parameters | buffers} <= changed
    assert {f"optimizer.{name}.momentum_buffer" for name in parameters} <= changed
    assert changed - {f"model.{n}" for n in parameters | buffers} - {
        f"optimizer.{n}.momentum_buffer" for n in parameters
    } == {"step"}


def test_the_loss_scale_of_fp16_comes_back(tmp_path: Path) -> None:
    state = build(precision="fp16")
    half_way = {"scale": 512.0, "_growth_tracker": 7}
    state.precision.scaler.load_state_dict({**state.precision.scaler.state_dict(), **half_way})
    path = save(state, tmp_path)
    loaded = build(precision="fp16")
    checkpoints(tmp_path).load(path, loaded)
    assert loaded.precision.scaler.state_dict().items() >= half_way.items()


def saved_on_ranks(folder: Path) -> dict[str, Tensor]:
    state = train(build(), 2)
    save(state, folder)
    return tensors(state)


def loaded_on_ranks(folder: Path) -> dict[str, Tensor]:
    state = build(seed=5)
    checkpoints(folder).load(checkpoints(folder).find("auto"), state)
    return tensors(state)


def test_a_checkpoint_moves_between_numbers_of_ranks(tmp_path: Path) -> None:
    saved = run_ranks(2, saved_on_ranks, tmp_path)
    assert different(saved[0], saved[1]) == []
    for ranks in (1, 3):
        for loaded in run_ranks(ranks, loaded_on_ranks, tmp_path):
            assert different(saved[0], loaded) == []
    assert different(saved[0], loaded_on_ranks(tmp_path)) == []  # plain python, without a process group


def test_the_newest_complete_checkpoint_is_found_whatever_lies_beside_it(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).find("auto") is None
    save_at(tmp_path, 3, 12)
    (tmp_path / "step_00000020").mkdir()  # a copy that was cut off: no manifest
    (tmp_path / "step_00000020/__0_0.distcp").write_bytes(b"half")
    for unfinished in (".step_00000030.tmp", "step_40", "step_00000050.old"):
        (tmp_path / unfinished).mkdir()
        (tmp_path / unfinished / "manifest.json").touch()
    assert checkpoints(tmp_path).find("auto") == checkpoints(tmp_path).newest() == tmp_path / "step_00000012"


def test_an_interrupted_save_is_replaced_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".step_00000004.tmp").mkdir(parents=True)
    (tmp_path / ".step_00000004.tmp/__1_0.distcp").write_bytes(b"of a rank that is no more")
    (tmp_path / "step_00000004").mkdir()
    (tmp_path / "step_00000004/__0_0.distcp").write_bytes(b"half")
    save_at(tmp_path, 4)
    assert names(tmp_path) == ["latest", "step_00000004"]
    assert names(tmp_path / "step_00000004") == [".metadata", "__0_0.distcp", "manifest.json"]


@pytest.mark.parametrize(("keep", "stay"), [(2, [8, 11]), (1, [11]), (0, [11]), (9, [2, 5, 8, 11])])
def test_the_newest_stay_and_latest_names_the_last(tmp_path: Path, keep: int, stay: list[int]) -> None:
    save_at(tmp_path, 2, 5, 8, 11, keep=keep)
    assert names(tmp_path) == ["latest", *(f"step_{step:08d}" for step in stay)]
    assert (tmp_path / "latest").read_text() == "step_00000011\n"


def test_an_incomplete_checkpoint_does_not_push_out_a_complete_one(tmp_path: Path) -> None:
    save_at(tmp_path, 2)
    for step in (3, 4):
        (tmp_path / f"step_0000000{step}").mkdir()
    save_at(tmp_path, 5)
    assert {"step_00000002", "step_00000005"} <= set(names(tmp_path))


def test_resume_takes_a_run_folder_or_a_checkpoint(tmp_path: Path) -> None:
    save_at(tmp_path / "run/checkpoints", 3, 6)
    here = checkpoints(tmp_path / "other")
    assert here.find("auto") is None
    assert here.find("never") is None
    assert here.find(str(tmp_path / "run")) == tmp_path / "run/checkpoints/step_00000006"
    assert here.find(str(tmp_path / "run/checkpoints/step_00000003")) == tmp_path / "run/checkpoints/step_00000003"
    assert checkpoints(tmp_path / "run/checkpoints").find("never") is None


@pytest.mark.parametrize("given", ["", "run", "file", "nowhere", "run/checkpoints/step_00000003"])
def test_resume_of_anything_else_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "run/checkpoints/step_00000003").mkdir(parents=True)  # incomplete
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no checkpoint|has no manifest") as error:
        checkpoints(tmp_path).find(str(tmp_path / given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", [{"dim": 16}, {"momentum": 0.0}], ids=["another width", "no momentum"])
def test_a_checkpoint_of_other_settings_is_refused_and_changes_nothing(tmp_path: Path, other: dict) -> None:
    path = save(train(build(), 1), tmp_path)
    state = build(seed=1, **other)
    before = tensors(state)
    with pytest.raises(UserError, match="use the settings it was made with") as error:
        checkpoints(tmp_path).load(path, state)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert different(before, tensors(state)) == []


def test_momentum_belongs_to_a_parameter_by_name_not_by_group(tmp_path: Path) -> None:
    state = train(build(), 2)
    path = save(state, tmp_path)
    regrouped = build(seed=1, exclude_1d=True)
    checkpoints(tmp_path).load(path, regrouped)
    assert different(tensors(state), tensors(regrouped)) == []


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path, file: str, left: int) -> None:
    path = save(build(), tmp_path)
    (path / file).write_bytes((path / file).read_bytes()[:left])
    with pytest.raises(UserError, match="does not load|cannot be used") as error:
        checkpoints(tmp_path).load(path, build())
    assert "\n" not in str(error.value)


def save_on_a_full_disk(folder: Path) -> tuple[str, list[str]]:
    state, manager = build(), checkpoints(folder)
    state.step = 1
    manager.save(state)
    manager.wait()
    state.step = 2
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, room[1]))  # stands in for the disk: no file may pass 2 kB
    manager.save(state)
    try:
        manager.wait()
    except BaseException as error:  # dcp's own exception is no Exception
        answer = type(error).__name__, names(folder)
    else:
        answer = "nothing", []
    dist.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, room)
    state.step = 3
    manager.save(state)
    manager.close()
    return answer


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_fills_up_costs_no_earlier_checkpoint(tmp_path: Path, ranks: int) -> None:
    after_failure = ["latest", "step_00000001"]
    assert run_ranks(ranks, save_on_a_full_disk, tmp_path) == [("UserError", after_failure)] * ranks
    assert checkpoints(tmp_path).find("auto") == tmp_path / "step_00000003"
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000003"]
    assert damage(tmp_path / "step_00000001") is None


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save(build(), tmp_path / "checkpoints")


def test_a_branch_that_was_left_does_not_come_back(tmp_path: Path) -> None:
    save_at(tmp_path, 2, 4, 6, 8)
    state = build()
    checkpoints(tmp_path).load(tmp_path / "step_00000006", state)
    state.step = 7
    save(state, tmp_path)
    assert checkpoints(tmp_path).find("auto") == tmp_path / "step_00000007"
    assert "step_00000008" not in names(tmp_path)
    assert "step_00000006" in names(tmp_path)


def test_training_goes_on_while_a_save_is_written_and_the_save_is_of_before(tmp_path: Path) -> None:
    state, manager = train(build(), 2), checkpoints(tmp_path)
    then = tensors(state)
    path = manager.save(state)
    train(state, 3)
    manager.close()
    loaded = build(seed=1)
    manager.load(path, loaded)
    assert different(then, tensors(loaded)) == []


def test_epochs_that_are_kept_stay_and_take_no_room(tmp_path: Path) -> None:
    state, manager = build(), Checkpoints(tmp_path, Checkpoint(keep=1, keep_every_epochs=1), runtime())
    for state.step in (5, 10, 15, 20):
        manager.save(state)
        manager.wait()
    assert names(tmp_path) == ["epoch_0001", "epoch_0002", "latest", "step_00000020"]
    assert damage(tmp_path / "epoch_0001") is None
    shard = "__0_0.distcp"
    assert (tmp_path / "epoch_0002" / shard).samefile(tmp_path / "step_00000020" / shard)
    assert manager.find(str(tmp_path / "epoch_0001")) == tmp_path / "epoch_0001"
    (tmp_path / "step_00000020" / shard).unlink()  # a second name: the kept one is whole
    assert manager.find("auto") == tmp_path / "epoch_0002"


def test_a_name_that_was_not_made_any_more_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    settings = Checkpoint(keep=1, keep_every_epochs=1)
    save_at(tmp_path, 10)  # as where the run was killed right after
    manager = Checkpoints(tmp_path, settings, runtime())
    manager.load(manager.find("auto"), build(seed=1))
    assert names(tmp_path) == ["epoch_0001", "latest", "step_00000010"]
    assert damage(tmp_path / "epoch_0001") is None


def said_of_a_save(state: TrainState, manager: Checkpoints, kind: type[Exception]) -> str:
    manager.save(state)
    try:
        manager.wait()
    except kind as error:
        return str(error)
    return ""


def save_in_a_folder_of_ones_own(folder: Path) -> str:
    return said_of_a_save(build(), checkpoints(folder / str(dist.get_rank())), UserError)


def test_what_other_ranks_write_elsewhere_completes_no_checkpoint(tmp_path: Path) -> None:
    told = run_ranks(2, save_in_a_folder_of_ones_own, tmp_path)
    assert told[0].startswith(f"Checkpoint {tmp_path}/0/step_00000000 cannot be written")
    assert all("__1_0.distcp" in said for said in told)
    assert checkpoints(tmp_path / "0").find("auto") is None


def diverge(folder: Path) -> str:
    state, manager = train(build(), 1), checkpoints(folder)
    if dist.get_rank() == 1:
        weight = state.module.encoder[0].weight
        weight.data.view(torch.int32)[1, 2, 0, 1] ^= 1  # one bit
    return said_of_a_save(state, manager, TrainingStopped)


def test_ranks_that_differ_in_a_bit_save_nothing_and_the_tensor_and_the_rank_are_named(tmp_path: Path) -> None:
    for said in run_ranks(3, diverge, tmp_path):
        assert "model.encoder.0.weight on rank 1;" in said
    assert checkpoints(tmp_path).find("auto") is None


def test_replicated_tensors_are_written_once_and_the_ranks_share_the_work(tmp_path: Path) -> None:
    saved = run_ranks(2, saved_on_ranks, tmp_path)[0]
    sizes = [path.stat().st_size for path in (tmp_path / "step_00000002").glob("*.distcp")]
    whole = sum(tensor.nbytes for tensor in saved.values())
    assert len(sizes) == 2
    assert max(sizes) < 0.75 * sum(sizes)
    assert sum(sizes) < 2 * whole + len(saved) * 2000  # torch.save heads each tensor


def test_checkpoints_at_a_url_come_back_from_it(tmp_path: Path) -> None:
    settings = Checkpoint(keep=2, folder=f"file://{tmp_path}/store")
    state, manager = build(), Checkpoints(tmp_path / "here", settings, runtime())
    for state.step in (2, 5, 7):
        train(state, 1)
        manager.save(state)
        manager.wait()
    straight = tensors(state)
    assert names(tmp_path / "store") == ["latest", "step_00000006", "step_00000008"]
    # Another machine, and the newest there is damaged on the way.
    (tmp_path / "store/step_00000008/__0_0.distcp").write_bytes(b"half")
    elsewhere = Checkpoints(tmp_path / "there", settings, runtime())
    assert elsewhere.find("auto") == tmp_path / "there/step_00000006"
    again = build(seed=1)
    elsewhere.load(elsewhere.find("auto"), again)
    assert again.step == 6
    again.step = 7
    assert different(straight, tensors(train(again, 1))) == []
