"""Names of tensors in files from elsewhere, as data, and the two maps that need them.

ours                        official SimSiam
encoder.<resnet key>        module.encoder.<resnet key>
projector.{0..7}.*          module.encoder.fc.{0..7}.*
-                           module.encoder.fc.6.bias       frozen, cancelled by the batch-norm after it
predictor.{0..3}.*          module.predictor.{0..3}.*
"""

import re
from collections.abc import Mapping, Set

from torch import Tensor

from simsiam.errors import UserError

NESTS = ("state_dict", "model")
"""Keys of a checkpoint dict under which the tensors may lie (SimSiam, MoCo and timm; RepDistiller and detectron2)."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes left by DistributedDataParallel and torch.compile, in any order and number."""

ENCODERS = (
    *("encoder_q.", "base_encoder.", "online_network.", "online_encoder.", "encoder."),
    *("backbone.", "net.", "model."),
)
"""Prefixes of the encoder in a whole model, the first that occurs, and again inside it: MoCo; MoCo v3, PASSL; Bolts;
byol-pytorch; SimSiam (and ours); solo-learn, lightly, OpenMMLab; byol-pytorch again; lightly's command line."""

OFFICIAL_HEADS = {"encoder.fc.": "projector.", "predictor.": "predictor.", "encoder.": "encoder."}
"""Official prefix to ours, the first that fits."""

FROZEN_BIAS = "encoder.fc.6.bias"
RUNNING_MEAN_AFTER_BIAS = "projector.7.running_mean"


def without_wrappers(key: str) -> str:
    """`module._orig_mod.encoder.conv1.weight` to `encoder.conv1.weight`."""
    # A compiled submodule has its prefix inside the key; `module.` inside a key may be a model's own name.
    key = key.replace("_orig_mod.", "")
    while key.startswith(WRAPPERS):
        key = key.removeprefix(next(w for w in WRAPPERS if key.startswith(w)))
    return key


def encoder_names(state: Mapping[str, Tensor], own: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Renames the encoder's tensors to its own state-dict keys; all others (heads, queues) keep theirs, unwrapped.

    Where the encoder is known, `own` are its keys: names come off until all of them are there, and no further.
    """
    state = {without_wrappers(key): tensor for key, tensor in state.items()}
    if own and own <= state.keys():
        return state
    prefix = next((p for p in ENCODERS if any(key.startswith(p) for key in state)), "")
    if not prefix and any(key.startswith("0.conv1.") for key in state):
        prefix = "0."  # Sequential(backbone, neck): PASSL and OpenMMLab
    if not prefix:
        return _torchvision_names(state)
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    beside = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    return beside | encoder_names(inside, own)


def _torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet that is a Sequential of its children (lightly), or whose shortcuts are called so (pytorch-cifar)."""
    children = {}
    stages = {int(found[1]) for key in state if (found := re.fullmatch(r"(\d+)\.\d+\.conv1\.weight", key))}
    if stages and "0.weight" in state:
        # Pooling and activation have no tensors, so the places of the stages differ with the stem and say nothing.
        children = {"0": "conv1", "1": "bn1"} | {str(at): f"layer{n}" for n, at in enumerate(sorted(stages), 1)}
    names = {}
    for key, tensor in state.items():
        child, dot, rest = key.replace(".shortcut.", ".downsample.").partition(".")
        names[children.get(child, child) + dot + rest] = tensor
    return names


def official_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official SimSiam state-dict under our names, so that z and p in evaluation mode stay what they were.

    The frozen bias moves the running mean of the batch-norm after it, so it is subtracted there.
    Raises UserError where the state has no `encoder.fc.*`, the official projector.
    """
    state = {without_wrappers(key): tensor for key, tensor in state.items()}
    if not any(key.startswith("encoder.fc.") for key in state):
        raise UserError(
            "The file is no official SimSiam checkpoint, it has no tensor module.encoder.fc.*: "
            "give one from facebookresearch/simsiam, or load its encoder alone"
        )
    bias = state.pop(FROZEN_BIAS, None)
    ours = {}
    for key, tensor in state.items():
        prefix = next((p for p in OFFICIAL_HEADS if key.startswith(p)), "")
        ours[OFFICIAL_HEADS.get(prefix, "") + key.removeprefix(prefix)] = tensor
    if bias is not None and RUNNING_MEAN_AFTER_BIAS in ours:
        ours[RUNNING_MEAN_AFTER_BIAS] = ours[RUNNING_MEAN_AFTER_BIAS] - bias
    return ours


def ours_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our SimSiam state-dict under the official names, with a frozen bias of zeros: what `main_lincls.py` reads."""
    prefixes = {ours: official for official, ours in OFFICIAL_HEADS.items()}
    official = {}
    for key, tensor in state.items():
        key = without_wrappers(key)
        prefix = next((p for p in prefixes if key.startswith(p)), "")
        official["module." + prefixes.get(prefix, "") + key.removeprefix(prefix)] = tensor
        if key == RUNNING_MEAN_AFTER_BIAS:
            official["module." + FROZEN_BIAS] = tensor.new_zeros(tensor.shape)
    return official


def count_names(names: tuple[str, ...], what: str) -> str:
    """`3 missing (conv1.weight, bn1.weight, ...)`."""
    shown = f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"
