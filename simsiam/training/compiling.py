"""torch.compile for a method: its residual blocks and heads, each by itself."""

from typing import Any

import torch
from torch import nn

from simsiam.models.blocks import residual_blocks

_HEADS = ("projector", "predictor")


def compile_parts(module: nn.Module, *, graphs: bool = False, **options: Any) -> int:
    """Has torch compile each residual block and head of `module` when it is first called; returns how many.

    Parts and not the whole: DDP sends a part's gradients while those of the part before it are being computed, equal
    parts share a kernel, and the wait at the start is shorter. Parameters and their names stay. Where there is no
    residual block, each encoder is a part. `options` are those of torch.compile. With `graphs` the kernels of a part on
    a GPU are recorded as CUDA graphs and replayed; what a forward pass of `module` gives then holds until the next one.
    """
    if graphs:
        options["mode"] = "reduce-overhead"
        module.register_forward_pre_hook(_begin)
    torch._dynamo.config.optimize_ddp = False  # it would cut parts in two at DDP's buckets, and they are small enough
    # The blocks share their code, and there are more kinds of them than a code may have kernels by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    parts = residual_blocks(module)
    children = dict(module.named_children())
    parts = parts or [part for name, part in children.items() if name.endswith("encoder")]
    parts += [part for name, part in children.items() if name.endswith(_HEADS) and not isinstance(part, nn.Identity)]
    for part in parts:
        part.compile(dynamic=False, **options)
    return len(parts)


def _begin(*_: object) -> None:
    """Lets graphs write again where the last forward pass has its results, which torch cannot tell from its parts."""
    torch.compiler.cudagraph_mark_step_begin()
