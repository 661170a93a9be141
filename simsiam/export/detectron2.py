"""An encoder as the pickle that Detectron2 loads as a backbone, and what its config must say then."""

import json
import pickle
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from simsiam.detection.names import detectron2_names
from simsiam.errors import UserError


def detectron2_pickle(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The content of a .pkl file for `MODEL.WEIGHTS`, without batch counters, which Detectron2 does not keep.

    Raises UserError where the encoder is none of its ResNets: it would load a part of it without a word.
    """
    if "conv1.weight" not in tensors or tensors["conv1.weight"].shape[2:] != (7, 7):
        raise UserError("Detectron2's ResNets begin with a 7x7 convolution; take an encoder such as resnet50")
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    arrays = {name: tensor.numpy() for name, tensor in detectron2_names(kept).items()}
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
