"""Deliberate breaks of our own code, for tests that must notice: `SABOTAGE=NAME pytest -p tests.faults.sabotage TEST`.

Each replaces functions before the tests are imported, for good; ranks that a test forks have them broken too.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from simsiam.checkpoint import manager, manifest
from simsiam.checkpoint.manager import Checkpoints
from simsiam.data import augment
from simsiam.data.loaders.resident import ResidentLoader
from simsiam.data.plan import Plan
from simsiam.distributed import preflight, store
from simsiam.distributed.agreement import Agreement
from simsiam.run import changes
from simsiam.run.lock import RunLock
from simsiam.training import step
from simsiam.training.finite import FiniteGuard
from simsiam.training.state import TrainState

Break = Callable[..., None]
"""Takes `setattr` of a MonkeyPatch."""


def files_not_synced(put: Break) -> None:
    put(manager, "synced_facts", manifest.file_facts)


def folder_not_synced(put: Break) -> None:
    put(manager, "_sync_folder", lambda path: None)


def _before_all_else_of_a_publication(put: Break, early: Callable[..., Any]) -> None:
    plain = Checkpoints._publish

    def publish(self: Checkpoints, temporary: Path, final: Path, kept: Path | None, step: int, facts: dict) -> None:
        early(self, temporary, final, step, facts)
        plain(self, temporary, final, kept, step, facts)

    put(Checkpoints, "_publish", publish)


def manifest_first(put: Break) -> None:
    _before_all_else_of_a_publication(
        put,
        lambda self, temporary, final, step, facts: manifest.write_manifest(
            temporary, step, self.runtime.world_size, facts
        ),
    )


def latest_first(put: Break) -> None:
    _before_all_else_of_a_publication(
        put,
        lambda self, temporary, final, step, facts: manager.write_atomically(self.folder / "latest", final.name + "\n"),
    )


def old_ones_deleted_first(put: Break) -> None:
    def early(self: Checkpoints, *_: object) -> None:
        for path in self._complete():
            manager._remove(path)

    _before_all_else_of_a_publication(put, early)


def hashes_not_compared(put: Break) -> None:
    class Whatever(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    plain = manifest.file_facts
    put(manifest, "file_facts", lambda path: {**plain(path), "sha256": Whatever()})
    put(manager, "synced_facts", plain)  # a save writes down the real ones


def newest_by_name(put: Break) -> None:
    put(manager, "damage", lambda folder: None)


def each_rank_decides(put: Break) -> None:
    put(Checkpoints, "find", Checkpoints._find)


def failed_save_swallowed(put: Break) -> None:
    def wait(self: Checkpoints) -> None:
        if self._writing is not None:
            self._writing.exception()
            self._writing = None

    put(Checkpoints, "wait", wait)


def ranks_not_compared(put: Break) -> None:
    put(manager, "differing", lambda names, of_ranks: None)


def momentum_dropped(put: Break) -> None:
    plain = TrainState.restore

    def restore(self: TrainState) -> None:
        plain(self)
        for entries in self.optimizer.state.values():
            entries["momentum_buffer"].zero_()

    put(TrainState, "restore", restore)


def batch_norm_dropped(put: Break) -> None:
    plain, dropped = TrainState.tensors, ("running_mean", "running_var", "num_batches_tracked")
    put(TrainState, "tensors", lambda self: {k: v for k, v in plain(self).items() if not k.endswith(dropped)})


def order_of_a_generator(put: Break) -> None:
    generator = np.random.default_rng(0)
    put(Plan, "batch", lambda self, step: generator.permutation(self.num_images)[: self.global_batch])


def one_step_off_after_a_resume(put: Break) -> None:
    plain = ResidentLoader.steps
    put(ResidentLoader, "steps", lambda self, start, stop: plain(self, start + (start > 0), stop + (start > 0)))


def crops_by_rank(put: Break) -> None:
    plain = ResidentLoader.__init__

    def init(self: ResidentLoader, images: Any, plan: Plan, settings: Any, *more: Any) -> None:
        plain(self, images, plan, replace(settings, seed=settings.seed + plan.rank), *more)

    put(ResidentLoader, "__init__", init)


def colours_by_rank(put: Break) -> None:
    plain = augment.colours_of_views

    def by_rank(recipes: Any, seed: int, *more: Any) -> Any:
        return plain(recipes, seed + (dist.get_rank() if dist.is_initialized() else 0), *more)

    put(augment, "colours_of_views", by_rank)


def what_is_not_finite_unnoticed(put: Break) -> None:
    put(FiniteGuard, "watch", lambda *_: None)


def what_is_not_finite_applied(put: Break) -> None:
    plain = step._update
    put(step, "_update", lambda state, finite: plain(state, torch.ones_like(finite)))


def signals_kept_to_oneself(put: Break) -> None:
    put(Agreement, "exchange", lambda self, wishes: wishes)


def store_of_all_attempts(put: Break) -> None:
    for part in ("_lead", "_follow"):
        put(store, part, lambda *_: "always")


def ranks_not_asked_at_start(put: Break) -> None:
    put(preflight, "_other_facts", lambda reports: [])


def lock_taken_without_a_look(put: Break) -> None:
    def took(self: RunLock) -> bool:
        self.path.unlink(missing_ok=True)
        return self._won(self.path)

    put(RunLock, "_took", took)


def other_settings_taken(put: Break) -> None:
    put(changes, "changed_settings", lambda earlier, now: [])


SABOTAGES: dict[str, Callable[[Break], None]] = {
    broken.__name__: broken
    for broken in (
        files_not_synced, folder_not_synced, manifest_first, latest_first, old_ones_deleted_first,
        hashes_not_compared, newest_by_name, each_rank_decides, failed_save_swallowed, ranks_not_compared,
        momentum_dropped, batch_norm_dropped, order_of_a_generator, one_step_off_after_a_resume,
        crops_by_rank, colours_by_rank, what_is_not_finite_unnoticed, what_is_not_finite_applied,
        signals_kept_to_oneself, store_of_all_attempts, ranks_not_asked_at_start, lock_taken_without_a_look,
        other_settings_taken,
    )
}  # fmt: skip


def pytest_configure() -> None:
    """Breaks what SABOTAGE names; nothing where it is empty."""
    name = os.environ.get("SABOTAGE")
    if name:
        SABOTAGES[name](pytest.MonkeyPatch().setattr)
