"""How blocks are computed: what cannot be had together or here is refused, and graphs are told of each forward pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain
from simsiam.training.compiling import compile_parts
from simsiam.training.computing import compute_as_asked

CPU = Runtime(0, 1, 0, torch.device("cpu"))
GPU = Runtime(0, 1, 0, torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("asked", "runtime", "says"),
    [
        ({"compile": True, "recompute": True}, CPU, "--compile and --recompute cannot be had together"),
        ({"cuda_graphs": True}, GPU, "--cuda_graphs records what --compile makes: give both"),
        ({"cuda_graphs": True, "compile": True, "accumulate": 2}, GPU, "cannot be had with --accumulate"),
        ({"cuda_graphs": True, "compile": True}, CPU, "this run is 1 rank(s) on cpu: leave it out"),
        ({"cuda_graphs": True, "compile": True}, replace(GPU, world_size=2), "this run is 2 rank(s) on cuda"),
    ],
)
def test_what_cannot_be_had_is_refused(asked: dict, runtime: Runtime, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        compute_as_asked(nn.Module(), Pretrain(**asked), runtime)
    assert says in str(refusal.value)


def test_with_graphs_each_forward_pass_begins_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, asked = [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    module = nn.Sequential()
    module.projector = nn.Linear(2, 2)
    assert compile_parts(module, graphs=True) == 1
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]
    for passes in (1, 2):
        module(torch.zeros(1, 2))
        assert len(begun) == passes
