"""What tests of faults compare with."""

import multiprocessing
from collections.abc import Iterator

import pytest

from tests.faults.harness import SHORT, STEPS, digest, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`digest` of SHORT on two ranks."""
    out = tmp_path_factory.mktemp("faults") / "undisturbed"
    assert run(2, out, *SHORT) == [0, 0]
    return digest(out, STEPS)


@pytest.fixture(autouse=True)
def no_rank_outlives_its_test() -> Iterator[None]:
    """A test that fails half way leaves none behind for others to count, or to share their core with."""
    before = multiprocessing.active_children()
    yield
    for process in set(multiprocessing.active_children()) - set(before):
        process.kill()
        process.join()
