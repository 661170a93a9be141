"""The file of a trained detector: its tensors, and all that it takes to build the network again."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from simsiam.atomic import replacing
from simsiam.detection.rcnn import build_detector
from simsiam.errors import UserError
from simsiam.models.encoders import build_encoder


class ReadDetector(NamedTuple):
    """A detector in evaluation mode, the names of its labels 1, 2, ..., and what its file says besides."""

    rcnn: GeneralizedRCNN
    classes: tuple[str, ...]
    about: dict[str, Any]


def write_detector(
    rcnn: nn.Module, path: Path, *, encoder: str, classes: tuple[str, ...], arguments: dict[str, Any], about: dict
) -> None:
    """Writes the tensors under torchvision's names, whole or not at all.

    Args:
        encoder: the encoder's name; `arguments`: those of `build_detector` that the network was built with.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in rcnn.state_dict().items()}
    told = {**about, "encoder": encoder, "classes": classes, "arguments": arguments}
    with replacing(path) as draft:
        safetensors.torch.save_file(tensors, draft, {"format": "pt", "detector": json.dumps(told)})


def read_detector(path: Path) -> ReadDetector:
    """A file of `write_detector`, without any settings. Raises UserError where it is none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["detector"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no mapping
        encoder, classes, arguments = (about.pop(name) for name in ("encoder", "classes", "arguments"))
        rcnn = build_detector(build_encoder(encoder), len(classes), **arguments)
        rcnn.load_state_dict(tensors)
    # Arguments and shapes that no detector has, too.
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is no detector of transfer/detect.py ({reason}); give the --out of a run") from None
    return ReadDetector(rcnn.eval(), tuple(classes), {**about, "encoder": encoder})
