"""A wish that was told before a save is not heard after it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed.runtime import Runtime
from simsiam.settings.tree import Checkpoint, Pretrain
from simsiam.training.clock import Clock
from simsiam.training.keeper import Keeper
from tests.ranks import run_ranks

FINE = SimpleNamespace(finite=torch.tensor(True), own_loss=torch.tensor(True), own_gradients=torch.tensor(True))


class Saves:
    """In the place of Checkpoints: notes at which steps what was asked of it."""

    seconds = 0.0

    def __init__(self, state: SimpleNamespace) -> None:
        self.state, self.saved, self.waited = state, [], []
        self.begun = self.ended = False

    def save(self, state: SimpleNamespace) -> Path:
        self.saved.append(state.step)
        self.begun, self.ended = True, False
        return Path("saved")

    def is_done(self) -> bool:
        return self.begun and self.ended

    def wait(self) -> None:
        if self.begun:
            self.waited.append(self.state.step)
        self.begun = False

    def close(self) -> None: ...


def an_hour_has_passed(keeper: Keeper, saves: Saves) -> None:
    keeper._saved_at -= 3600


def a_save_has_ended(keeper: Keeper, saves: Saves) -> None:
    saves.begun = saves.ended = True


def on_a_rank(folder: Path, happens: str, saves_at: tuple[int, ...]) -> tuple[list[int], list[int]]:
    ranked = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if ranked else (0, 1)
    runtime = Runtime(rank, ranks, 0, torch.device("cpu"))
    settings = Pretrain(checkpoint=Checkpoint(every_minutes=59), hang_timeout=0, log_every=1000)
    state = SimpleNamespace(step=0, steps_per_epoch=1000)
    journal = SimpleNamespace(folder=SimpleNamespace(path=folder, check_ours=lambda runtime: None))
    saves = Saves(state)
    keeper = Keeper(settings, SimpleNamespace(stop_step=1000), runtime, state, saves, journal, Clock(1))
    with keeper:
        for state.step in range(1, 9):
            if state.step == 3:
                globals()[happens](keeper, saves)
            if keeper.stepped(FINE).saves or state.step in saves_at:
                keeper.save()
        waited = list(saves.waited)
    return saves.saved, waited


@pytest.mark.parametrize(("ranks", "step"), [(1, 3), (2, 4)])
def test_a_save_that_is_due_by_the_minute_is_made_once(ranks: int, step: int, tmp_path: Path) -> None:
    arguments = tmp_path, "an_hour_has_passed", ()
    answers = run_ranks(ranks, on_a_rank, *arguments) if ranks > 1 else [on_a_rank(*arguments)]
    assert [saved for saved, _ in answers] == [[step]] * ranks


def test_the_end_of_a_save_is_settled_a_step_later_and_not_after_the_next_save_began(tmp_path: Path) -> None:
    told = run_ranks(2, on_a_rank, tmp_path, "a_save_has_ended", ())
    assert [waited for _, waited in told] == [[4]] * 2
    told = run_ranks(2, on_a_rank, tmp_path, "a_save_has_ended", (3,))
    assert [waited for _, waited in told] == [[3]] * 2  # by the save itself; the new one is left to its thread
