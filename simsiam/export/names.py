"""Names of tensors in files from elsewhere, as data, and the two maps that need them.

ours                        official SimSiam
encoder.<resnet key>        module.encoder.<resnet key>
projector.{0..7}.*          module.encoder.fc.{0..7}.*
-                           module.encoder.fc.6.bias       frozen, cancelled by the batch-norm after it
predictor.{0..3}.*          module.predictor.{0..3}.*
"""

from collections.abc import Mapping

from torch import Tensor

from simsiam.errors import UserError

NESTS = ("state_dict", "model")
"""Keys of a checkpoint dict under which the tensors may lie (SimSiam, MoCo and timm; RepDistiller and detectron2)."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes left by DistributedDataParallel and torch.compile, in any order and number."""

ENCODERS = ("encoder_q.", "encoder.", "backbone.")
"""Prefixes of the encoder in a whole model, the first that occurs: MoCo; SimSiam (and ours); solo-learn, OpenMMLab."""

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


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the encoder's tensors to its own state-dict keys; all others (heads, queues) keep theirs, unwrapped."""
    state = {without_wrappers(key): tensor for key, tensor in state.items()}
    prefix = next((p for p in ENCODERS if any(key.startswith(p) for key in state)), "")
    return {without_wrappers(key.removeprefix(prefix)): tensor for key, tensor in state.items()}


def official_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official SimSiam state-dict under our names, so that z and p in evaluation mode stay what they were.

    The frozen bias moves the running mean of the batch-norm after it, so it is subtracted there.
    Raises UserError where the state has no `encoder.fc.*`, the official projector.
    """
    state = {without_wrappers(key): tensor for key, tensor in state.items()}
    if not any(key.startswith("encoder.fc.") for key in state):
        raise UserError(
            "The file is no official SimSiam checkpoint, it has no tensor module.encoder.fc.*: "
            "give one from facebookresearch/simsiam, or load its encoder alone."
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
