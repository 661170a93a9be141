"""The kernel of batch-norm on GPUs beside other ways; to be run with TRITON_INTERPRET=1, by which it runs on a CPU."""

import torch
from torch import Tensor, nn

from simsiam.models import batchnorm
from simsiam.models.gpu_affine import affine

SHAPES = ((2, 3, 64, 5), (2, 2, 48, 3), (1, 4, 512, 2), (6, 2, 20, 4), (2, 5, 300, 1), (3, 7, 1, 9))
WITHIN = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # the interpreter rounds down


def beside_float64() -> None:
    torch.manual_seed(0)
    for views, images, channels, side in SHAPES:
        for dtype, within in WITHIN.items():
            shape = (views * images, channels, side, side)
            x, z = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
            a, b, c = (torch.randn(views, channels) for _ in range(3))

            def wide(activation: Tensor, views: int = views, images: int = images) -> Tensor:
                return activation.double().view(views, images, *activation.shape[1:])

            def spread(coefficient: Tensor) -> Tensor:
                return coefficient.double()[:, None, :, None, None]

            for more in (False, True):
                out = torch.full_like(x, torch.nan)
                affine(out, x, a, c, z if more else None, b if more else None)
                expected = wide(x) * spread(a) + spread(c) + (wide(z) * spread(b) if more else 0)
                torch.testing.assert_close(wide(out), expected, rtol=within, atol=within)


def in_batchnorm() -> None:
    batchnorm._gpu_affine = lambda: affine
    for kind, shape in ((nn.BatchNorm2d, (8, 24, 6, 6)), (nn.BatchNorm1d, (8, 40))):
        for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            results = []
            for once in (False, True):
                batchnorm._passes_once = lambda *_, once=once: once
                torch.manual_seed(0)
                x, grad = torch.randn(2, *shape).to(dtype)
                if x.dim() == 4:
                    x = x.contiguous(memory_format=torch.channels_last)
                x.requires_grad_()
                norm = batchnorm.ViewBatchNorm(kind(shape[1]), 2)
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.uniform_(norm.bias, -1, 1)
                y = norm(x)
                y.backward(grad)
                results.append((y, x.grad, norm.weight.grad, norm.bias.grad))
            torch.testing.assert_close(results[1], results[0], rtol=within, atol=within)
