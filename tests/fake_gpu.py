"""A GPU of tensors without contents: what a run does on one can be followed where there is none, but for the numbers.

Tensors know device, shape and type; mixing devices raises, and so does whatever makes the host wait for the GPU.
Autograd's own backward pass needs a driver and is left out, as are CUDA's events and generators.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from simsiam.distributed.waiting import waiting

GPU = torch.device("cuda", 0)


class Waits(RuntimeError):
    """The host would have waited for the GPU."""


class Copies(RuntimeError):
    """An activation would have been copied, or lie in another layout than its network's."""


class NoCopies(TorchDispatchMode):
    """Within, `Copies` is raised where a network on GPU moves what it has computed without computing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.bfloat16 and result.dim() == 4:
            name = func._schema.name
            if name in ("aten::clone", "aten::cat", "aten::copy_", "aten::contiguous"):
                raise Copies(f"{name} to {tuple(result.shape)}")
            if name == "aten::convolution" and not result.is_contiguous(memory_format=torch.channels_last):
                raise Copies(f"{name} to {tuple(result.shape)} with strides {result.stride()}")
        return result


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero"):
            raise Waits(f"{name} of a tensor on {args[0].device}")
        result = func(*args, **kwargs)
        crosses = False
        if name == "aten::_to_copy":
            crosses = args[0].device != result.device and not kwargs.get("non_blocking")
        if name == "aten::copy_":
            crosses = args[0].device != args[1].device and not (kwargs.get("non_blocking") or args[2:3] == (True,))
        if crosses:
            raise Waits(f"{name} from {args[0].device} to {result.device}")
        return result


class _NoGenerator:
    """A generator of a GPU needs a driver; `generator=None` draws from no numbers as well."""

    def __init__(self, device: torch.device) -> None:
        assert device == GPU

    def manual_seed(self, seed: int) -> None:
        return None


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within, tensors are made without contents, on GPU where that is asked for."""
    # A first backward pass that saw a GPU would start a thread for it, and no fork could make a backward pass then.
    torch.ones((), requires_grad=True).backward()
    meta = torch.library.Library("aten", "IMPL", "Meta")
    # Kernels of GPUs alone that torch knows no shapes of.
    meta.impl("batch_norm_update_stats", _statistics)
    meta.impl("_fused_sgd_", lambda *_, **__: None)
    try:
        with (
            patch("torch.cuda.is_bf16_supported", lambda **_: True),
            patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            patch("torch.Generator", _NoGenerator),
            # cuDNN, which would be asked, answers in the layout of what it is given.
            patch("torch._C._conv_determine_backend_memory_format", _layout),
            patch.object(type(waiting), "counted", lambda *_: nullcontext()),
            patch("simsiam.models.batchnorm._gpu_affine", lambda: _affine),
            patch("simsiam.data.augment._gpu_views", lambda: None),
            patch.object(nn.Module, "to", _module_to),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            yield
    finally:
        meta._destroy()


@contextmanager
def without_waiting(parameters: Callable[[], list[nn.Parameter]]) -> Iterator[None]:
    """Within, `Waits` is raised where the host would wait; a backward pass gives all parameters a gradient."""

    def backward(loss: Tensor) -> None:
        assert loss.device == GPU
        assert loss.requires_grad
        for parameter in parameters():
            parameter.grad = torch.empty_like(parameter)

    with patch.object(Tensor, "backward", backward), _NoWaits():
        yield


def _statistics(x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float) -> tuple[Tensor, Tensor]:
    """A GPU answers in the type that it adds up in, with and without running statistics."""
    like = x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return like, torch.empty_like(like)


def _affine(out: Tensor, x: Tensor, scale: Tensor, shift: Tensor, z: Tensor | None, of_z: Tensor | None) -> None:
    """What simsiam/models/gpu_affine.py takes for granted."""
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    for activation in (out, x) if z is None else (out, x, z):
        assert activation.device == GPU
        assert activation.shape == x.shape
        assert activation.is_contiguous(memory_format=layout)
    for coefficient in (scale, shift) if of_z is None else (scale, shift, of_z):
        assert coefficient.device == GPU
        assert coefficient.shape == scale.shape
        assert coefficient.is_contiguous()
        assert coefficient.dtype == torch.float32


def _layout(images: Tensor, weight: Tensor, *_: Any) -> torch.memory_format:
    channels_last = any(t.is_contiguous(memory_format=torch.channels_last) for t in (images, weight))
    return torch.channels_last if channels_last else torch.contiguous_format


def _module_to(module: nn.Module, device: torch.device, memory_format: torch.memory_format | None = None) -> nn.Module:
    """As Module.to, which cannot put a tensor without contents in the place of one with them."""
    made: dict[int, Tensor] = {}

    def on_device(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            layout = memory_format if memory_format and tensor.dim() == 4 else torch.preserve_format
            copy = torch.empty_like(tensor, device=device, memory_format=layout, requires_grad=False)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: on_device(tensor) for name, tensor in tensors.items() if tensor is not None})
    return module
