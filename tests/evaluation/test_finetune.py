"""Fine-tuning does the same on any number of ranks; without synced statistics, the running ones still agree."""

import pytest
import torch
import torch.distributed as dist

from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.finetune import FineTuned
from simsiam.models.encoders import build_encoder
from simsiam.settings.derive import derive
from simsiam.settings.tree import FineTune, Optim
from simsiam.training.build import build_state
from simsiam.training.step import train_step
from tests.ranks import run_ranks


def three_steps(synced: bool) -> dict[str, torch.Tensor]:
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    settings = FineTune(batch_size=24, epochs=1, precision="fp32", optim=Optim(lr=0.2, weight_decay=0.0))
    torch.manual_seed(0)
    module = FineTuned(build_encoder("resnet8"), 4, synced=synced)
    state = build_state(module, settings, derive(settings, runtime.world_size, 240), runtime, {"head": 0.1})
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images += torch.arange(24).view(-1, 1, 1, 1) / 12  # so that the ranks' own statistics differ
    mine = slice(runtime.rank * 24 // runtime.world_size, (runtime.rank + 1) * 24 // runtime.world_size)
    for _ in range(3):
        train_step(state, [(images[mine], (torch.arange(24) % 4)[mine])])
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def test_synced_statistics_make_it_the_same_on_one_two_and_three_ranks() -> None:
    alone, *others = (run_ranks(ranks, three_steps, True)[0] for ranks in (1, 2, 3))
    for other in others:
        torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("synced", [True, False])
def test_all_ranks_end_with_the_same_network(synced: bool) -> None:
    first, second = run_ranks(2, three_steps, synced)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_statistics_of_a_rank_alone_are_another_network() -> None:
    synced, alone = (run_ranks(2, three_steps, synced)[0] for synced in (True, False))
    assert not torch.allclose(synced["encoder.bn1.running_var"], alone["encoder.bn1.running_var"], rtol=1e-3)


def test_everything_trains_from_the_first_step_under_the_encoders_own_names() -> None:
    module = FineTuned(build_encoder("resnet8"), 4)
    module(torch.randn(8, 3, 16, 16), torch.arange(8) % 4).loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in module.parameters())
    assert list(module.encoder.state_dict()) == list(build_encoder("resnet8").state_dict())


def test_the_head_starts_as_that_of_the_linear_protocol() -> None:
    torch.manual_seed(0)
    head = FineTuned(build_encoder("resnet8"), 1000).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()
