"""What tests of faults compare with."""

import pytest

from tests.faults.harness import SHORT, STEPS, digest, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`digest` of SHORT on two ranks."""
    out = tmp_path_factory.mktemp("faults") / "undisturbed"
    assert run(2, out, *SHORT) == [0, 0]
    return digest(out, STEPS)
