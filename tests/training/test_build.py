"""How gradients are cut into pieces for their way over the ranks."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from simsiam.distributed.runtime import Runtime
from simsiam.settings.derive import derive
from simsiam.settings.tree import Run
from simsiam.training.build import build_state
from simsiam.training.finite import OwnGradients
from simsiam.training.module import Trainable
from tests.ranks import run_ranks


class Tower(Trainable):
    """Layers used in another order than they are listed in, and too large for one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1200, 1200) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (2, 0, 4, 1, 3):
            x = self.layers[number](x).relu()
        return x.sum()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.parameters())}


def pieces(deterministic: bool) -> list[list[int]]:
    """The sizes of the pieces of three steps."""
    settings = Run(batch_size=4, epochs=1, precision="fp32", deterministic=deterministic)
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    seen: list[int] = []

    def look(self: OwnGradients, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().numel())
        return average(self, group, bucket)

    average, OwnGradients._average = OwnGradients._average, look
    model = build_state(Tower(), settings, derive(settings, 2, 8), runtime).model
    steps = []
    for _ in range(3):
        seen.clear()
        model(torch.ones(2, 1200)).backward()
        steps.append(list(seen))
    return steps


@pytest.mark.parametrize("deterministic", [False, True])
def test_where_bits_must_not_change_pieces_are_the_same_from_the_first_step_on(deterministic: bool) -> None:
    (first, _, third), _ = run_ranks(2, pieces, deterministic)
    assert sum(first) == sum(third)
    assert len(third) > 1
    assert (first == third) == deterministic
