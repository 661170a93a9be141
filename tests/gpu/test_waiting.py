"""On a GPU: waits in collectives are counted by events, and nothing waits for these. `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed.waiting import Waiting, waiting
from simsiam.training.finite import OwnGradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_wait_counts_when_the_gpu_has_come_past_it() -> None:
    device, account = torch.device("cuda", 0), Waiting()
    torch.cuda.synchronize()
    with account.counted(device):
        torch.cuda._sleep(1_000_000_000)  # half a second or so, in the stream
    assert account.seconds() == 0
    torch.cuda.synchronize()
    assert 0.1 < account.seconds() < 10


def test_the_wait_for_gradients_is_counted_at_the_end_of_the_backward_pass(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64).to(device), [0])
        OwnGradients(parallel, device)
        before = waiting.seconds()
        parallel(torch.randn(8, 64, device=device)).sum().backward()
        torch.cuda.synchronize()
        assert before < waiting.seconds() < before + 10
    finally:
        dist.destroy_process_group()
