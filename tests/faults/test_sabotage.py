"""The controls of the tests: each deliberate break of our own code turns one of them red, by what it asserts."""

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from tests.conftest import ROOT
from tests.faults.sabotage import SABOTAGES

ORDER = "test_data_then_name_then_manifest_then_latest_then_the_old_ones"
NOTICED_BY = {
    "files_not_synced": ("checkpoint/test_order.py", ORDER),
    "folder_not_synced": ("checkpoint/test_order.py", ORDER),
    "manifest_first": ("checkpoint/test_order.py", ORDER),
    "latest_first": ("checkpoint/test_order.py", ORDER),
    "old_ones_deleted_first": ("checkpoint/test_order.py", ORDER),
    "hashes_not_compared": (
        "checkpoint/test_damage.py",
        "test_a_hundred_damages_are_found_and_the_one_before_is_taken[0]",
    ),
    "newest_by_name": (
        "checkpoint/test_manager.py",
        "test_the_newest_complete_checkpoint_is_found_whatever_lies_beside_it",
    ),
    "each_rank_decides": ("checkpoint/test_deciding.py", "test_ranks_take_what_rank_0_sees"),
    "failed_save_swallowed": (
        "checkpoint/test_manager.py",
        "test_a_disk_that_fills_up_costs_no_earlier_checkpoint[1]",
    ),
    "ranks_not_compared": (
        "checkpoint/test_manager.py",
        "test_ranks_that_differ_in_a_bit_save_nothing_and_the_tensor_and_the_rank_are_named",
    ),
    "momentum_dropped": ("checkpoint/test_manager.py", "test_a_loaded_state_goes_on_to_the_bit[sgd]"),
    "batch_norm_dropped": ("checkpoint/test_manager.py", "test_everything_that_moves_is_in_the_checkpoint"),
    "order_of_a_generator": ("data/test_plan.py", "test_any_step_in_any_order_gives_the_same"),
    "one_step_off_after_a_resume": (
        "data/test_loaders.py",
        "test_steps_from_the_middle_are_the_tail_of_all_steps[resident-0]",
    ),
    "crops_by_rank": ("data/test_loaders.py", "test_ranks_together_load_what_one_rank_loads[2-resident]"),
    "what_is_not_finite_unnoticed": (
        "training/test_step.py",
        "test_nothing_moves_on_a_loss_that_is_not_finite[nan-sgd]",
    ),
    "what_is_not_finite_applied": (
        "training/test_step.py",
        "test_nothing_moves_on_a_loss_that_is_not_finite[nan-sgd]",
    ),
    "signals_kept_to_oneself": ("distributed/test_agreement.py", "test_what_one_rank_wishes_all_hear_at_the_same_step"),
    "store_of_all_attempts": ("distributed/test_store.py", "test_one_store_serves_attempt_after_attempt[late0]"),
    "ranks_not_asked_at_start": (
        "distributed/test_preflight.py",
        "test_a_rank_that_differs_is_named_on_every_rank",
    ),
    "lock_taken_without_a_look": (
        "run/test_lock.py",
        "test_a_lock_is_there_as_long_as_it_is_held_and_can_be_had_again",
    ),
    "other_settings_taken": (
        "run/test_changes.py",
        "test_what_changes_is_refused_with_both_values_and_a_remedy_that_works",
    ),
}
"""Sabotage -> file and name of the quickest test that must notice."""

A_KILLED_RUN = "faults/test_run.py", "test_a_run_that_is_killed_anywhere_goes_on_to_the_bit[shard-1]"
NOTICED_BY_WHOLE_RUNS = {
    "momentum_dropped": A_KILLED_RUN,
    "order_of_a_generator": A_KILLED_RUN,
    "one_step_off_after_a_resume": A_KILLED_RUN,
    "colours_by_rank": ("parity/test_resume.py", "test_a_run_resumes_on_another_number_of_ranks"),
}


FORK = multiprocessing.get_context("fork")
ASSERTED = "by what it asserts"

Tests = Mapping[str, tuple[str, str]]
"""Sabotage -> file and name of a test, all its parameters where it names none."""


class Trials:
    """A plugin that has each sabotage and its test in a fork of its own, after all have been collected once."""

    def __init__(self, folder: Path, tests: Tests) -> None:
        self._folder, self._tests = folder, tests
        self._failed: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for name, (file, test) in self._tests.items():
            wanted = f"tests/{file}::{test}"
            items = [item for item in session.items if wanted in (item.nodeid, item.nodeid.partition("[")[0])]
            self._fork(name, items)
        self._fork("nothing", session.items)
        return True

    def pytest_exception_interact(self, call: pytest.CallInfo, report: pytest.TestReport) -> None:
        asserted = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
        self._failed.append(ASSERTED if call.when == "call" and asserted else report.longreprtext)

    def _fork(self, name: str, items: list[pytest.Item]) -> None:
        process = FORK.Process(target=self._try, args=(name, items))
        process.start()
        process.join(300)
        process.kill()
        process.join()

    def _try(self, name: str, items: list[pytest.Item]) -> None:
        if name != "nothing":
            SABOTAGES[name](pytest.MonkeyPatch().setattr)
        for item in items:
            runtestprotocol(item, log=False, nextitem=None)
            if self._failed:
                break
        (self._folder / name).write_text(json.dumps(self._failed))
        os._exit(0)


def tried(tests: Tests, folder: Path) -> dict[str, list[str]]:
    """Sabotage -> how its test failed, [ASSERTED] as it should; of `nothing`, how any of them failed without one."""
    process = FORK.Process(target=_pytest, args=(folder, tests))
    process.start()
    process.join()
    said = (folder / "said").read_text()
    found = [name for name in (*tests, "nothing") if (folder / name).exists()]
    assert found, said
    return {name: json.loads((folder / name).read_text()) for name in found}


def _pytest(folder: Path, tests: Tests) -> None:
    os.environ.pop("PYTEST_ADDOPTS", None)
    descriptor = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    options = ("-q", "--timeout=0", f"--basetemp={folder}/inside", "-p", "no:cacheprovider", "-p", "no:xdist")
    wanted = dict.fromkeys(f"{ROOT}/tests/{file}::{test}" for file, test in tests.values())
    pytest.main([*options, *wanted], plugins=[Trials(folder, tests)])
    sys.stdout.flush()
    os._exit(0)  # without what the outer pytest would do at its end


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return tried(NOTICED_BY, tmp_path_factory.mktemp("sabotage"))


@pytest.mark.parametrize("name", NOTICED_BY)
def test_a_sabotage_turns_a_test_red(verdicts: dict[str, list[str]], name: str) -> None:
    assert verdicts[name][:1] == [ASSERTED], "\n".join(verdicts[name])


def test_without_a_sabotage_all_are_green(verdicts: dict[str, list[str]]) -> None:
    assert verdicts["nothing"] == [], "\n".join(verdicts["nothing"])


@pytest.mark.faults
@pytest.mark.parametrize("name", NOTICED_BY_WHOLE_RUNS)
def test_a_sabotage_turns_a_test_of_whole_runs_red(name: str, tmp_path: Path) -> None:
    verdicts = tried({name: NOTICED_BY_WHOLE_RUNS[name]}, tmp_path)
    assert verdicts[name][:1] == [ASSERTED], "\n".join(verdicts[name])
    assert verdicts["nothing"] == []


def test_every_sabotage_is_tried() -> None:
    assert {*NOTICED_BY, *NOTICED_BY_WHOLE_RUNS} == SABOTAGES.keys()
