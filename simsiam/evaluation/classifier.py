"""The file of a trained classifier: one linear layer, and what must come before it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from simsiam.atomic import replacing
from simsiam.errors import UserError
from simsiam.settings.tree import Views


class ReadClassifier(NamedTuple):
    """A linear layer from features (N, D) to logits (N, C), its class names, and what its file says besides.

    `about` has `encoder` (name), `encoder_sha256`, `pretrained` (where the encoder came from), and of the centre crop
    `resize`, `size`, `pixel_mean` and `pixel_std` (JSON).
    """

    head: nn.Linear
    classes: tuple[str, ...]
    about: dict[str, str]


def about_views(views: Views) -> dict[str, str]:
    """What a file of weights says of the images it wants."""
    named = {"resize": views.resize, "size": views.size, "pixel_mean": views.mean, "pixel_std": views.std}
    return {name: json.dumps(value) for name, value in named.items()}


def write_classifier(head: nn.Linear, classes: tuple[str, ...], path: Path, about: Mapping[str, str]) -> None:
    """Weight (C, D) and bias (C,) as safetensors; class names and `about` in its metadata."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    with replacing(path) as draft:
        safetensors.torch.save_file(tensors, draft, {"format": "pt", **about, "classes": json.dumps(classes)})


def read_classifier(path: Path) -> ReadClassifier:
    """A file of `write_classifier`. Raises UserError where it is none."""
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            classes = tuple(json.loads(about.pop("classes")))
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not all(isinstance(name, str) for name in classes):
            raise ValueError("weight, bias and names do not go together")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no classifier of lincls.py or semisup.py ({error}); give the classifier.safetensors of a run"
        ) from None
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return ReadClassifier(head, classes, about)
