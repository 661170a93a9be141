"""Computing a block again changes nothing but what is held in between."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods.registry import build_method
from simsiam.training.recompute import recompute_blocks
from tests.ranks import run_ranks

HEADS = {"dim": 16, "projector_layers": 2, "projector_hidden": 16}


def step(method: nn.Module, views: Tensor) -> tuple[list[Tensor], int]:
    """Loss, gradients and buffers after three steps, and the bytes that were held for the last backward pass."""
    for _ in range(2):
        method(views).loss.backward()
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = method(views).loss
    loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return [loss.detach(), *gradients, *(buffer.clone() for buffer in method.buffers())], sum(held.values())


def beside_plain(section: dict) -> tuple[tuple[list[Tensor], int], tuple[list[Tensor], int]]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    plain = build_method(section, "resnet20").to(memory_format=torch.channels_last)
    plain.prepare(320, 16 * ranks)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    views = torch.randn(2, 16 * ranks, 3, 16, 16).chunk(ranks, dim=1)[rank]
    return step(plain, views), step(again, views)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "section",
    [{"name": "simsiam", **HEADS}, {"name": "moco", **HEADS, "queue_size": 64, "batchnorm": "shuffled"}],
    ids=["simsiam", "moco"],
)
def test_a_step_is_the_same_to_the_bit_and_holds_less_than_half(section: dict, ranks: int) -> None:
    for (plain, whole), (again, part) in run_ranks(ranks, beside_plain, section):
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        assert part < whole / 2


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="--recompute needs an encoder of residual blocks"):
        recompute_blocks(nn.Sequential(nn.Conv2d(3, 6, 3)))
