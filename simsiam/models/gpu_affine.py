"""a x + b z + c on a GPU in one pass, with coefficients for each view and channel: what batch-norm does to activations.

torch's own operations pass twice for it, and where activations are of 16 bits and coefficients of 32 they go through
memory number by number. Triton comes with torch for GPUs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS, _MOST_CHANNELS = 4096, 256  # of a tile, which is as wide as there are channels up to so many


@triton.jit(do_not_specialize=["rows"])
def _affine_of_a_tile(
    out, x, scale, shift, z, of_z, rows, channels, HAS_Z: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    view = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    inside = (row < rows)[:, None] & is_channel[None, :]
    at = view.to(tl.int64) * rows * channels + (row[:, None] * channels + channel[None, :])
    of = view * channels + channel
    a = tl.load(scale + of, mask=is_channel)
    c = tl.load(shift + of, mask=is_channel)
    y = tl.load(x + at, mask=inside).to(tl.float32) * a[None, :] + c[None, :]
    if HAS_Z:
        b = tl.load(of_z + of, mask=is_channel)
        y += tl.load(z + at, mask=inside).to(tl.float32) * b[None, :]
    tl.store(out + at, y, mask=inside)


def affine(out: Tensor, x: Tensor, scale: Tensor, shift: Tensor, z: Tensor | None, of_z: Tensor | None) -> None:
    """Makes `out` x scale + shift, with z of_z added where there is a z; computed in float32 and rounded once.

    out, x, z: (V * N, C) contiguous or (V * N, C, H, W) channels_last, V equal consecutive views; scale, shift, of_z:
    (V, C) contiguous in float32. A view must have less than 2^31 numbers.
    """
    views, channels = scale.shape
    rows = x.numel() // channels // views
    wide = min(triton.next_power_of_2(channels), _MOST_CHANNELS)
    tall = _NUMBERS // wide
    grid = triton.cdiv(rows, tall), triton.cdiv(channels, wide), views
    if z is None:
        _affine_of_a_tile[grid](out, x, scale, shift, x, scale, rows, channels, False, tall, wide)
    else:
        _affine_of_a_tile[grid](out, x, scale, shift, z, of_z, rows, channels, True, tall, wide)


def try_out() -> None:
    """Makes each kind of kernel and runs it on the GPU; raises what Triton raises where it cannot make one."""
    one = torch.ones(1, 16, device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.ones(2, 16, device="cuda", dtype=dtype)
        affine(torch.empty_like(x), x, one, one, None, None)
        affine(torch.empty_like(x), x, one, one, x, one)
    torch.cuda.synchronize()  # or what fails on the GPU would be told by a later line
