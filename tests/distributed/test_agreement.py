"""A wish of any rank is known to all of them, and at the same step."""

import torch
import torch.distributed as dist

from simsiam.distributed.agreement import Agreement, Wish
from simsiam.distributed.runtime import Runtime
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def heard(wishes: dict[tuple[int, int], set[Wish]], steps: int) -> list[set[int]]:
    """What this rank hears at each step; `wishes` are those of (rank, step)."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    agreement = Agreement(Runtime(rank, ranks, rank, CPU))
    told = [{int(wish) for wish in agreement.exchange(wishes.get((rank, step), set()))} for step in range(steps)]
    agreement.close()
    return told


def test_what_one_rank_wishes_all_hear_at_the_same_step() -> None:
    wishes = {(2, 1): {Wish.STOP}, (0, 3): {Wish.SAVE}, (1, 3): {Wish.SAVE, Wish.SETTLE}}
    expected = [set(), set(), {Wish.STOP}, set(), {Wish.SAVE, Wish.SETTLE}]
    assert run_ranks(3, heard, wishes, 5) == [expected] * 3


def test_one_rank_alone_hears_itself_at_once() -> None:
    assert heard({(0, 1): {Wish.TIME}}, 2) == [set(), {Wish.TIME}]
