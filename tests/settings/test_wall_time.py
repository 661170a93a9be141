"""Times as Slurm writes them."""

import pytest

from simsiam.settings.wall_time import wall_seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("", 0),
        ("90", 90 * 60),
        ("2:30", 150),
        ("23:50:00", 23 * 3600 + 50 * 60),
        ("0:0:5", 5),
        ("2-0", 2 * 86400),
        ("1-12:30", 86400 + 12 * 3600 + 30 * 60),
        ("1-02:03:04", 86400 + 2 * 3600 + 3 * 60 + 4),
    ],
)
def test_every_form(written: str, seconds: int) -> None:
    assert wall_seconds(written) == seconds
