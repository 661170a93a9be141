"""What crosses the ranks through their host's memory is what gloo sends, whoever is late, and nothing is left of it."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.distributed import host_memory
from simsiam.distributed.collectives import add_up, gather_equal, meet_in, meets_in_memory, rank, world_size
from simsiam.distributed.host_memory import HostMemory
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.training.finite import OwnGradients
from tests.ranks import run_ranks

SLOT = 1 << 20
CPU = torch.device("cpu")


def opened() -> HostMemory | None:
    return HostMemory.among(rank(), world_size(), dist.distributed_c10d._get_default_store())


def both_ways(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What is gathered and added up by gloo, and in memory."""
    found = []
    for memory in (None, opened()):
        meet_in(memory)
        assert meets_in_memory(CPU) == (memory is not None)
        found.append((gather_equal(rows * (rank() + 1)), add_up(rows * (rank() + 1))))
    meet_in(None)
    return found


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [(1, torch.int64), (257, torch.float32), (7, torch.bfloat16), (SLOT // 8 + 3, torch.float64), (0, torch.float32)],
)
def test_it_gives_what_gloo_gives(ranks: int, numbers: int, dtype: torch.dtype) -> None:
    rows = torch.arange(3 * numbers).view(numbers, 3).remainder(64).to(dtype)
    for by_gloo, in_memory in run_ranks(ranks, both_ways, rows):
        for expected, found in zip(by_gloo, in_memory):
            assert torch.equal(found, expected)


def gradients_both_ways() -> list[list[Tensor]]:
    """Of data parallelism, averaged by gloo and in memory; a rank's images are its own."""
    found = []
    for memory in (None, opened()):
        meet_in(memory)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 600, bias=False))
        parallel = nn.parallel.DistributedDataParallel(per_view_batchnorm(network, 1), bucket_cap_mb=0.1)
        own = OwnGradients(parallel, CPU)
        parallel(torch.randn(4, 3, 8, 8) + rank()).square().mean().backward()
        assert own.finite
        found.append([parameter.grad.clone() for parameter in network.parameters()])
    meet_in(None)
    return found


def test_gradients_are_those_of_gloo() -> None:
    (by_gloo, in_memory), (_, on_the_other) = run_ranks(2, gradients_both_ways)
    for expected, found, other in zip(by_gloo, in_memory, on_the_other, strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(found, other)
        assert found.any()


def many_meetings() -> int:
    """Rounds in which each sum and each rank's own part was right, though ranks come late by turns."""
    meet_in(opened())
    right = 0
    for turn in range(300):
        if turn % 50 == rank():
            time.sleep(0.003)
        rows = torch.full((1 + turn % 7, 2), float(turn + 1000 * rank()))
        everyone = gather_equal(rows).view(world_size(), -1)
        expected = [float(turn + 1000 * other) for other in range(world_size())]
        total = add_up(torch.full((3,), turn + rank()))
        right += everyone.mean(1).tolist() == expected
        right += total.tolist() == [sum(turn + other for other in range(world_size()))] * 3
    meet_in(None)
    return right


def test_no_rank_overtakes_another() -> None:
    assert run_ranks(3, many_meetings) == [600] * 3


def its_file(refuses: bool) -> tuple[bool, bool, bool]:
    """Whether a file was made, is there after all have opened it, and whether there is a memory."""
    made = []

    def noted(**options: object) -> tuple[int, str]:
        made.append(make(**options))
        return made[0]

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    make, host_memory.tempfile.mkstemp = host_memory.tempfile.mkstemp, noted
    if refuses:
        host_memory.os.posix_fallocate = full
    memory = opened()
    host_memory.tempfile.mkstemp = make
    return bool(made), any(Path(path).exists() for _, path in made), memory is not None


@pytest.mark.parametrize("refuses", [False, True])
def test_no_file_is_left_and_where_there_is_no_room_no_rank_has_one(refuses: bool) -> None:
    assert run_ranks(2, its_file, refuses) == [(True, False, not refuses), (False, False, not refuses)]


def elsewhere() -> bool:
    host_memory.platform.machine = lambda: "aarch64"
    return opened() is None


def test_a_processor_that_reorders_writes_has_none() -> None:
    assert run_ranks(2, elsewhere) == [True, True]


def test_many_ranks_have_none() -> None:
    assert HostMemory.among(0, 9, dist.HashStore()) is None


def one_goes(folder: Path) -> None:
    meet_in(opened())
    add_up(torch.ones(3))
    if rank() == 1:
        os._exit(0)
    try:
        add_up(torch.ones(3))
    except dist.DistError as error:
        (folder / "told").write_text(str(error))
    os._exit(0)


def test_a_rank_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # neither leaves an answer
        run_ranks(2, one_goes, tmp_path)
    assert (tmp_path / "told").read_text() == "the process of rank 1 is gone"
