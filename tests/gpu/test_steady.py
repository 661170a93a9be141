"""In the steady state a step on a GPU never waits for the GPU, and a compiled one learns what the eager one does."""

import copy

import pytest
import torch

from simsiam.data.side_copies import SideCopies
from simsiam.distributed.runtime import Runtime
from simsiam.methods.registry import build_method
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain
from simsiam.training.build import build_state
from simsiam.training.compiling import compile_parts
from simsiam.training.state import TrainState
from simsiam.training.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def built(compiles: bool = False, graphs: bool = False, **optim: object) -> tuple[TrainState, torch.Tensor]:
    torch.manual_seed(0)
    runtime = Runtime(0, 1, 0, torch.device("cuda", 0))
    settings = Pretrain(encoder="resnet18", batch_size=32, epochs=2, precision="bf16", optim=Optim(lr=0.05, **optim))
    method = build_method(settings.method, settings.encoder)
    if compiles:
        compile_parts(method, graphs=graphs)
    state = build_state(method, settings, derive(settings, 1, 320), runtime)
    return state, torch.randn(2, 32, 3, 64, 64, device=runtime.device)


@pytest.mark.parametrize("compiles", [False, True])
def test_no_step_waits_for_the_gpu(compiles: bool) -> None:
    state, views = built(compiles)
    for _ in range(3):
        train_step(state, [(views,)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(state, [(views,)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
def test_a_compiled_step_learns_what_the_eager_one_does(graphs: bool) -> None:
    (eager, views), (compiled, _) = built(), built(compiles=True, graphs=graphs)
    compiled.module.load_state_dict(copy.deepcopy(eager.module.state_dict()))
    losses = [[train_step(state, [(views,)]).loss.item() for _ in range(10)] for state in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


def test_copies_beside_the_computation_arrive_whole_and_keep_their_memory() -> None:
    device = torch.device("cuda", 0)
    to_device, factor = SideCopies(device), torch.randn(4096, 4096, device=device)
    batches = [torch.full((1 << 24,), number, dtype=torch.uint8).pin_memory() for number in range(8)]
    sums = []
    for batch in batches:
        copy = to_device(batch)
        for _ in range(10):  # the host goes on and lets go of the copy long before the GPU has come to it
            factor = factor @ factor / 64
        sums.append(copy.long().sum())
    assert [total.item() for total in sums] == [number << 24 for number in range(8)]
