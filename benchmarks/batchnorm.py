"""Batch-norm alone, forward and backward: our layer, the same without the kernel of its own that a GPU has, and torch's
layer once a view.

    python benchmarks/batchnorm.py [--channels 64] [--size 112] [--batch-size 16] [--precision bf16] [--device auto]

At the least it passes over an activation eight times: `of a copy's rate` is how near to that the device's memory is.
"""

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.measure import copy_rate, in_turns, seconds_of
from benchmarks.report import Report, ratios, spread, turns_parser
from simsiam.distributed.runtime import running
from simsiam.models.batchnorm import ViewBatchNorm
from simsiam.training.precision import Precision

VIEWS, PASSES, TIMES = 2, 8, 10
OURS, WITHOUT, TORCHS = "ours", "ours, without its kernel for GPUs", "torch's, once a view"


def main() -> None:
    options = turns_parser(__doc__, rounds=5)
    options.add_argument("--channels", type=int, default=64)
    options.add_argument("--size", type=int, default=112, help="side of the activation (default %(default)s)")
    options.add_argument("--batch-size", type=int, default=16, help="images, each with two views (default %(default)s)")
    options.add_argument("--precision", default="auto")
    options.add_argument("--device", default="auto")
    arguments = options.parse_args()
    with running(arguments.device) as runtime:
        device = runtime.device
        precision = Precision(arguments.precision, device).name
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        shape = (VIEWS * arguments.batch_size, arguments.channels, arguments.size, arguments.size)
        x, grad = (torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last) for _ in range(2))
        x.requires_grad_()
        torchs = nn.BatchNorm2d(arguments.channels).to(device)
        ours = ViewBatchNorm(nn.BatchNorm2d(arguments.channels), VIEWS).to(device)

        def seconds(layer: nn.Module, views: int = 1, own_kernel: bool = True) -> float:
            def passes() -> Tensor:
                x.grad = None
                parts = zip(x.chunk(views), grad.chunk(views))
                return torch.autograd.backward(*zip(*((layer(part), dy) for part, dy in parts)))

            if own_kernel:
                return seconds_of(passes, TIMES, device, 1)
            with patch("simsiam.models.batchnorm._passes_once", lambda *_: False):
                return seconds_of(passes, TIMES, device, 1)

        sides = {OURS: lambda: seconds(ours), TORCHS: lambda: seconds(torchs, VIEWS)}
        if device.type == "cuda":
            sides[WITHOUT] = lambda: seconds(ours, own_kernel=False)
        taken = in_turns(sides, arguments.rounds, arguments.seconds)
        least = PASSES * x.nbytes / copy_rate(device)
        with Report(f"Batch-norm: {' x '.join(map(str, shape))}, {precision}", arguments, device) as report:
            rows = [(side, spread(taken[side]), f"{least / min(taken[side]):.2f}") for side in sides]
            report.table(("layer", "s", "of a copy's rate"), rows)
            for side in sides:
                if side != OURS:
                    report.ratio(f"batch-norm's time over: {side}", ratios(taken[OURS], taken[side]))


if __name__ == "__main__":
    main()
