"""Encoders by name: images (N, 3, H, W) to pooled features (N, D), without a classifier and without weights."""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torchvision
from torch import nn

from simsiam.errors import UserError
from simsiam.models.blocks import residual_blocks
from simsiam.models.cifar_resnet import ThinResNet, stem_resnet

CIFAR: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet18": functools.partial(stem_resnet, 18),
    "cifar_resnet34": functools.partial(stem_resnet, 34),
    "cifar_resnet50": functools.partial(stem_resnet, 50),
    "resnet8": functools.partial(ThinResNet, 8),
    "resnet20": functools.partial(ThinResNet, 20),
    "resnet32": functools.partial(ThinResNet, 32),
    "resnet56": functools.partial(ThinResNet, 56),
    "resnet110": functools.partial(ThinResNet, 110),
}


def build_encoder(name: str | nn.Module, *, zero_init_residual: bool = True) -> nn.Module:
    """An encoder with the library's random initialisation, with attributes `feature_dim` and `encoder_name`.

    `name` is one of `list_encoders()` or `timm:NAME`; an encoder is returned as it is. `zero_init_residual` starts the
    last batch-norm scale of each residual block at 0 (SimSiam appendix A), where the model is a ResNet. torchvision's
    and CIFAR encoders have the state-dict keys of torchvision's ResNets without `fc`. Raises UserError for an unknown
    name.
    """
    if isinstance(name, nn.Module):
        return name
    if name.startswith("timm:"):
        encoder, feature_dim = _timm(name.removeprefix("timm:"), zero_init_residual)
    elif name in list_encoders():
        build = CIFAR.get(name) or functools.partial(torchvision.models.get_model, name, weights=None)
        encoder = build(zero_init_residual=zero_init_residual)
        feature_dim = encoder.fc.in_features
        encoder.fc = nn.Identity()
    else:
        raise UserError(_unknown(name))
    encoder.feature_dim, encoder.encoder_name = feature_dim, name
    return encoder


def open_residual_branches(network: nn.Module) -> None:
    """Starts the last batch-norm scale of each residual block at 1, as torchvision does, where it was begun at 0.

    What was read from a file, such as a teacher, stays as it is.
    """
    for block in residual_blocks(network):
        last = getattr(block, "bn3", None) or block.bn2
        if not last.weight.any():
            nn.init.ones_(last.weight)


@functools.cache
def list_encoders() -> tuple[str, ...]:
    """Names that `build_encoder` knows, torchvision's ResNets first, small before large; `timm:NAME` comes on top."""
    found = torchvision.models.list_models(module=torchvision.models, include=["resne*", "wide_resne*"])
    numbers = {name: [int(n) for n in re.findall(r"\d+", name)] for name in found}
    return (*sorted(found, key=lambda name: (name.split("_")[0].rstrip("0123456789"), numbers[name])), *CIFAR)


def recognise(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The name of the ResNet that has exactly these tensors, from {state-dict key: shape}; None where it is unknown.

    Tensors beside the encoder's own modules (`fc`, heads, queues) and batch counters do not count.
    """
    for name in list_encoders():
        known = encoder_shapes(name)
        modules = {key.split(".")[0] for key in known}
        given = {key: tuple(shape) for key, shape in shapes.items() if key.split(".")[0] in modules}
        if known == {key: shape for key, shape in given.items() if not key.endswith("num_batches_tracked")}:
            return name
    return None


@functools.cache
def encoder_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """State-dict key -> shape of one of `list_encoders()`, without batch counters, which old files lack."""
    with torch.device("meta"):
        state = build_encoder(name).state_dict()
    return {key: tuple(t.shape) for key, t in state.items() if not key.endswith("num_batches_tracked")}


def _timm(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    import timm  # costs a second, and most runs do not need it

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) + timm.list_models(f"*{name}*" if name else "")
        raise UserError(
            f"timm has no model '{name}' for the encoder timm:{name} ({_nearest([f'timm:{n}' for n in near])}): "
            "give a name of timm.list_models()"
        )
    # timm calls it zero_init_last, and only its ResNets take it.
    is_resnet = name.split(".")[0] in timm.list_models(module="resnet")
    options = {"zero_init_last": zero_init_residual} if is_resnet else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    # Some models (MobileNetV3) widen after the pooling: then this, not num_features, is the size of their output.
    return model, getattr(model, "head_hidden_size", model.num_features)


def _unknown(name: str) -> str:
    import timm

    near = difflib.get_close_matches(name, list_encoders(), n=3)
    if timm.is_model(name):
        near.insert(0, f"timm:{name}")
    return f"There is no encoder '{name}' ({_nearest(near)}): give one of {', '.join(list_encoders())}, or timm:NAME."


def _nearest(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))[:5]
    return f"nearest: {', '.join(names)}" if names else "nothing is near"
