"""Every test here must leave no trace, take little memory and little time."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simsiam.errors import UserError

_MOST_BYTES = 1 << 30
_MOST_SECONDS = 10


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What hostile files try to make, outside the folder that they lie in."""
    return tmp_path / "outside" / "canary"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that hostile files are put into; its neighbours must stay as they are."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(autouse=True)
def harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which something came to be outside of `place`, or that took a gigabyte or ten seconds."""
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "place" / "cache"))
    (tmp_path / "outside").mkdir()
    before, began = _resident(reset=True), time.process_time()
    yield
    assert time.process_time() - began < _MOST_SECONDS
    assert _resident() - before < _MOST_BYTES
    assert not list((tmp_path / "outside").iterdir())
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "place"}


def _resident(*, reset: bool = False) -> int:
    """The most memory that this process has held since the reset, bytes; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def refused(read: Callable[[], object], what: str, match: str = "") -> str:
    """The sentence that `read` ends with."""
    try:
        found = read()
    except UserError as error:
        said = str(error)
    else:
        pytest.fail(f"{what} was read: {str(found)[:200]}")
    assert "\n" not in said, what
    assert match in said, f"{what}: {said}"
    return said
