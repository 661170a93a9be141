"""A step on a GPU leaves no tensor on the CPU, copies no activation, makes no host wait; seen where there is none."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from simsiam.data.augment import Augment
from simsiam.data.crops import Crops
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.finetune import FineTuned
from simsiam.evaluation.linear import LinearProbe
from simsiam.methods.registry import METHODS, build_method
from simsiam.methods.simsiam import SimSiam
from simsiam.models.batchnorm import _Normalise
from simsiam.models.encoders import build_encoder
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Run, Views
from simsiam.training.build import build_state
from simsiam.training.finite import FiniteGuard
from simsiam.training.module import Trainable
from simsiam.training.state import TrainState
from simsiam.training.step import StepResult, train_step
from tests.fake_gpu import GPU, Copies, NoCopies, Waits, fake_gpu, without_waiting

TEACHER = {"teacher": "random", "teacher_encoder": "resnet18"}


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This is the last of four ranks, whose messages are lost."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    yield
    dist.destroy_process_group()


def build(module: Trainable, precision: str = "bf16", **optim: Any) -> TrainState:
    settings = Run(batch_size=8, epochs=2, precision=precision, optim=Optim(**optim))
    # One rank, as DDP would want a driver; the layers and losses ask the process group.
    return build_state(module, settings, derive(settings, 1, 64), Runtime(0, 1, 0, GPU))


def parameters(state: TrainState) -> list[torch.nn.Parameter]:
    return [parameter for group in state.optimizer.param_groups for parameter in group["params"]]


def step_twice(state: TrainState, *inputs: Tensor) -> StepResult:
    guard = FiniteGuard(GPU)
    with without_waiting(lambda: parameters(state)):
        for _ in range(2):
            result = train_step(state, [inputs])
            guard.watch(state.step, result.finite, result.own_loss, result.own_gradients)
    momenta = [momentum for of_one in state.optimizer.state.values() for momentum in of_one.values()]
    assert {tensor.device for tensor in (*result[:-1], *momenta, *state.module.buffers())} == {GPU}
    return result


def step_method(name: str, precision: str = "bf16") -> StepResult:
    options = TEACHER if "kd" in name else {"bn_groups": 4} if name == "moco" else {}
    method = build_method({"name": name, **options}, "resnet18")
    method.prepare(num_images=64, global_batch=8)
    with fake_gpu(), NoCopies():
        state = build(method, precision)
        samples = (torch.arange(8, device=GPU),) if method.takes_samples else ()
        small = (torch.randn(4, 8, 3, 32, 32, device=GPU),) if method.takes_small_views else ()
        return step_twice(state, torch.randn(method.num_views, 8, 3, 64, 64, device=GPU), *small, *samples)


@pytest.mark.usefixtures("four_ranks")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_several_ranks(name: str) -> None:
    step_method(name)


@pytest.mark.parametrize(
    ("precision", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_every_precision_on_one_rank(precision: str, computed: torch.dtype) -> None:
    assert step_method("simsiam", precision).output.projections.dtype == computed


@pytest.mark.parametrize("batchnorm", [False, True])
def test_linear_heads(batchnorm: bool, four_ranks: None) -> None:
    probe = LinearProbe(build_encoder("resnet18"), 5, ("a", "b"), batchnorm)
    with fake_gpu():
        step_twice(build(probe), torch.randn(1, 8, 3, 64, 64, device=GPU), torch.arange(8, device=GPU))


@pytest.mark.parametrize("synced", [False, True])
def test_fine_tuning(synced: bool, four_ranks: None) -> None:
    module = FineTuned(build_encoder("resnet18"), 5, synced=synced)
    with fake_gpu():
        step_twice(build(module), torch.randn(1, 8, 3, 64, 64, device=GPU), torch.arange(8, device=GPU))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_update_by_lars(precision: str) -> None:
    method = build_method({"name": "simsiam"}, "resnet18")
    with fake_gpu():
        step_twice(build(method, precision, name="lars"), torch.randn(2, 8, 3, 64, 64, device=GPU))


def test_the_backward_pass_of_batchnorm(four_ranks: None) -> None:
    class Saved:
        views, folds, ranks = 2, 0, 4

    with fake_gpu():
        x, grad = (torch.randn(8, 6, 4, 4, device=GPU).contiguous(memory_format=torch.channels_last) for _ in range(2))
        statistics = torch.ones(2, 6, device=GPU)
        Saved.saved_tensors = x, torch.ones(6, device=GPU), statistics, statistics, torch.ones((), device=GPU)
        with without_waiting(list):
            dx, grad_weight, grad_bias, *_ = _Normalise.backward(Saved, grad)
        assert dx.shape == x.shape
        assert dx.is_contiguous(memory_format=torch.channels_last)
        assert {dx.device, grad_weight.device, grad_bias.device} == {GPU}


def test_views() -> None:
    views, samples = Views(size=32, solarize=0.3), np.arange(64)
    with fake_gpu():
        augment = Augment(views, 0).to(GPU)
        pixels = torch.zeros(2, 64, 32, 32, 3, dtype=torch.uint8, device=GPU)
        with without_waiting(list):
            (made,) = augment.inputs(Crops(pixels, samples, torch.zeros(64, dtype=torch.int64), 1))
        assert made.device == GPU
        assert made.shape == (2, 64, 3, 32, 32)


class Asks(SimSiam):
    """Looks at its loss at every step."""

    def forward(self, *views: Tensor) -> Any:
        output = super().forward(*views)
        assert output.loss.item() < 1
        return output


class Forgets(SimSiam):
    """Leaves a tensor where it was made."""

    def forward(self, *views: Tensor) -> Any:
        output = super().forward(*views)
        return output._replace(loss=(output.loss + torch.ones(3)).mean())


class Fetches(SimSiam):
    """Copies its projections to the host."""

    def forward(self, *views: Tensor) -> Any:
        output = super().forward(*views)
        return output._replace(scalars={"size": output.projections.cpu().sum()})


class Mislays(SimSiam):
    """Has its images in another layout."""

    def forward(self, *views: Tensor) -> Any:
        self.encoder.layer1.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
        return super().forward(*views)


def test_a_copy_is_noticed() -> None:
    module = Mislays("resnet18")
    with fake_gpu(), NoCopies(), pytest.raises(Copies, match="aten::clone to .8, 64, 16, 16."):
        step_twice(build(module), torch.randn(2, 4, 3, 64, 64, device=GPU))


@pytest.mark.parametrize(("method", "error"), [(Asks, Waits), (Forgets, RuntimeError), (Fetches, Waits)])
def test_mistakes_are_noticed(method: type[SimSiam], error: type[Exception]) -> None:
    module = method("resnet18")
    with fake_gpu(), pytest.raises(error, match="cuda"):
        step_twice(build(module), torch.randn(2, 8, 3, 64, 64, device=GPU))
