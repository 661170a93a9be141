"""Which checkpoint it is, rank 0 decides: a shared folder shows each host another state of itself for seconds."""

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.checkpoint.test_manager import checkpoints, save_at
from tests.ranks import run_ranks

NEWEST = "step_00000006"


def found_where_listings_lag(folder: Path, rank: int, unseen: list[str]) -> Path | None:
    if dist.get_rank() == rank:
        plain = Path.glob
        Path.glob = lambda self, pattern: (path for path in plain(self, pattern) if path.name not in unseen)
    return checkpoints(folder).find("auto")


@pytest.mark.parametrize(
    ("rank", "unseen", "expected"),
    [
        (1, [NEWEST], NEWEST),
        (1, ["step_00000004", NEWEST], NEWEST),
        (0, [NEWEST], "step_00000004"),
    ],
)
def test_ranks_take_what_rank_0_sees(tmp_path: Path, rank: int, unseen: list[str], expected: str) -> None:
    save_at(tmp_path, 4, 6)
    assert run_ranks(2, found_where_listings_lag, tmp_path, rank, unseen) == [tmp_path / expected] * 2
