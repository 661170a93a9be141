"""In the steady state a step on a GPU never waits for the GPU, and a compiled one learns what the eager one does."""

import copy

import pytest
import torch

from simsiam.distributed.runtime import Runtime
from simsiam.methods.registry import build_method
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain
from simsiam.training.build import build_state
from simsiam.training.compiling import compile_parts
from simsiam.training.state import TrainState
from simsiam.training.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def built(compiles: bool = False, **optim: object) -> tuple[TrainState, torch.Tensor]:
    torch.manual_seed(0)
    runtime = Runtime(0, 1, 0, torch.device("cuda", 0))
    settings = Pretrain(encoder="resnet18", batch_size=32, epochs=2, precision="bf16", optim=Optim(lr=0.05, **optim))
    method = build_method(settings.method, settings.encoder)
    if compiles:
        compile_parts(method)
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


def test_a_compiled_step_learns_what_the_eager_one_does() -> None:
    (eager, views), (compiled, _) = built(), built(compiles=True)
    compiled.module.load_state_dict(copy.deepcopy(eager.module.state_dict()))
    losses = [[train_step(state, [(views,)]).loss.item() for _ in range(10)] for state in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
