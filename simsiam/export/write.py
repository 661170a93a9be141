"""The encoder alone, as a file that other libraries load."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from simsiam.atomic import write_atomically
from simsiam.errors import UserError
from simsiam.export.detectron2 import detectron2_config, detectron2_pickle
from simsiam.export.names import without_wrappers
from simsiam.settings.tree import Views

_ASSUMED = {
    "pixel_mean": json.dumps(Views.mean),
    "pixel_std": json.dumps(Views.std),
    "pixels_are": "assumed to be ImageNet's: what was read did not say",
}


FORMATS = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth",),
    "timm": (".pth", ".safetensors"),
    "detectron2": (".pkl",),
}
"""Format -> suffixes of its files, of which the first format that has a suffix is the one meant by it."""


def write_encoder(
    encoder: nn.Module, path: str | Path, *, metadata: Mapping[str, str], layout: str | None = None
) -> None:
    """Writes the encoder's parameters and buffers, whole or not at all, as a file that others load.

    `.safetensors` holds `metadata` too, and the encoder's name beside it. `.pth` is the plain state-dict that
    `torchvision.models.resnet50().load_state_dict(..., strict=False)` takes, with only `fc` missing, and that
    `timm.create_model("resnet50", num_classes=0).load_state_dict` takes whole. `.pkl` is Detectron2's. What the last
    two have no place for, and the pixel statistics that the weights want, stand beside them in `FILE.json`.

    Args:
        layout: one of `FORMATS`; by the suffix where it is None.

    Raises UserError for a suffix or an encoder that a format does not have, and where the disk refuses.
    """
    path = Path(path)
    layout = layout or next((name for name, suffixes in FORMATS.items() if path.suffix in suffixes), "")
    if path.suffix not in FORMATS.get(layout, ()):
        endings = FORMATS.get(layout) or (".safetensors", ".pth", ".pkl")
        raise UserError(f"An encoder file {path} cannot be written: let its name end in {' or '.join(endings)}")
    tensors = {key: t.detach().cpu().contiguous() for key, t in _tensors(encoder).items()}
    # A user's own module may have no name.
    name = getattr(encoder, "encoder_name", "")
    pixels = {} if "pixel_mean" in metadata else _ASSUMED
    about = {"channel_order": "RGB", **pixels, **metadata, **({"encoder": name} if name else {})}
    if layout == "timm":
        _check_timm(name, path)
    beside: dict[str, Any] = dict(about)
    if path.suffix == ".safetensors":
        content, beside = safetensors.torch.save(tensors, {"format": "pt", **about}), {}
    elif layout == "detectron2":
        content = detectron2_pickle(tensors, about)
        beside["detectron2"] = detectron2_config(name, about)
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    _write_whole(path, content)
    if beside:
        _write_whole(path.with_name(path.name + ".json"), (json.dumps(beside, indent=2) + "\n").encode())


def _check_timm(name: str, path: Path) -> None:
    import timm

    if not timm.is_model(name.removeprefix("timm:")):
        raise UserError(f"timm has no model {name or 'of an encoder without a name'}, so {path} would fit none of it")


def _write_whole(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"The encoder file {path} cannot be written ({error.strerror or error}): "
            "choose a folder that you may write to and that has space"
        ) from error


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256, in hex, of the names, types, shapes and bytes of all parameters and buffers, in order of name."""
    digest = hashlib.sha256()
    for key, tensor in sorted(_tensors(encoder).items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(encoder: nn.Module) -> dict[str, Tensor]:
    return {without_wrappers(key): tensor for key, tensor in encoder.state_dict().items()}
