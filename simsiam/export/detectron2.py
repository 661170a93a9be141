"""An encoder as the pickle that Detectron2 loads as a backbone, and what its config must say then."""

import json
import pickle
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from simsiam.errors import UserError

_STAGES = re.compile(r"layer([1-4])\.")
_THEIRS = re.compile(r"(stem|res[2-5]\.\d+)\.(conv\d|shortcut)\.(weight|norm\.(weight|bias|running_mean|running_var))")
_NORM = re.compile(r"\bbn(\d)\.")


def detectron2_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a ResNet under Detectron2's names, without batch counters, which it does not keep.

    conv1 and bn1 of the stem are `stem.conv1` and `stem.conv1.norm`, layer1 to layer4 `res2` to `res5`, bnN
    `convN.norm`, downsample.0 and .1 `shortcut` and `shortcut.norm` (as in MoCo's convert-pretrain-to-detectron2.py).

    Raises UserError where a tensor is none of a ResNet's: a part of a network would be loaded without a word.
    """
    if "conv1.weight" not in tensors or tensors["conv1.weight"].shape[2:] != (7, 7):
        raise UserError("Detectron2's ResNets begin with a 7x7 convolution; take an encoder such as resnet50")
    named = {}
    for key, tensor in tensors.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = _STAGES.sub(lambda stage: f"res{int(stage[1]) + 1}.", key)
        name = name if name != key else f"stem.{key}"
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        name = _NORM.sub(r"conv\1.norm.", name)
        if not _THEIRS.fullmatch(name):
            raise UserError(f"Detectron2's ResNets have no tensor {key}; take an encoder such as resnet50")
        named[name] = tensor
    return named


def detectron2_pickle(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The content of a .pkl file for `MODEL.WEIGHTS`."""
    arrays = {name: tensor.numpy() for name, tensor in detectron2_names(tensors).items()}
    # With an author it is read as Detectron2's own format; the heuristics put `backbone.` before the names.
    content = {"model": arrays, "__author__": "simsiam", "matching_heuristics": True, "about": dict(about)}
    return pickle.dumps(content, protocol=4)


def detectron2_config(encoder_name: str, about: Mapping[str, str]) -> dict[str, Any]:
    """Keys of Detectron2's config that must fit the weights: without them a model loads, and is worse in silence."""
    mean, std = (json.loads(about[key]) for key in ("pixel_mean", "pixel_std"))
    depth = re.fullmatch(r"resnet(\d+)", encoder_name)
    return {
        **({"MODEL.RESNETS.DEPTH": int(depth[1])} if depth else {}),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in mean],
        "MODEL.PIXEL_STD": [round(255 * value, 3) for value in std],
        "INPUT.FORMAT": "RGB",
    }
