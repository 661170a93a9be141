"""The encoder alone, as a file that other libraries load."""

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.export.names import without_wrappers


def write_encoder(encoder: nn.Module, path: str | Path, *, metadata: Mapping[str, str]) -> None:
    """Writes the encoder's parameters and buffers under torchvision's (or timm's) names, whole or not at all.

    `.safetensors` holds `metadata` too, and the encoder's name beside it. `.pth` is the plain state-dict that
    `torchvision.models.resnet50().load_state_dict(..., strict=False)` takes, with only `fc` missing; it has no place
    for metadata. Missing folders are made. Raises UserError for another suffix and where the disk refuses.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"An encoder file {path} cannot be written: let its name end in .safetensors or .pth.")
    tensors = {key: t.detach().cpu().contiguous() for key, t in _tensors(encoder).items()}
    if path.suffix == ".pth":
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    else:
        # A user's own module may have no name.
        named = {"encoder": encoder.encoder_name} if hasattr(encoder, "encoder_name") else {}
        content = safetensors.torch.save(tensors, {"format": "pt", **metadata, **named})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(content)
            # Otherwise a power cut after the rename could leave an empty file under the final name.
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UserError(
            f"The encoder file {path} cannot be written ({error.strerror or error}): "
            "choose a folder that you may write to and that has space."
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
