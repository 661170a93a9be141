"""What Detectron2 calls the tensors of a ResNet and of the C4 detectors that are built on one."""

import re
from collections.abc import Mapping

from torch import Tensor

from simsiam.errors import UserError

# In order: a detector's modules first, then the ResNet's own, wherever it stands.
_MODULES = (
    (r"^roi_heads\.box_head\.layer4\.", "roi_heads.res5."),
    (r"^roi_heads\.box_head\.norm\.", "roi_heads.res5.norm."),
    (r"^rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^(backbone\.)?(?=conv1\.|bn1\.)", r"\1stem."),
    (r"^(backbone\.)?layer([1-4])\.", lambda m: f"{m[1] or ''}res{int(m[2]) + 1}."),
)
_LAYERS = (
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
    (r"\bbn([1-3])\.", r"conv\1.norm."),
)
_KNOWN = re.compile(
    r"((backbone\.)?(stem\.conv1|res[2-5]\.\d+\.(conv[1-3]|shortcut))|roi_heads\.res5\.\d+\.(conv[1-3]|shortcut))"
    r"(\.norm)?\.\w+|roi_heads\.res5\.norm\.\w+|roi_heads\.box_predictor\.(cls_score|bbox_pred)\.\w+"
    r"|roi_heads\.mask_head\.(deconv|predictor)\.\w+"
    r"|proposal_generator\.rpn_head\.(conv|objectness_logits|anchor_deltas)\.\w+"
)


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under Detectron2's names, from the state dict of an encoder or of a C4 detector.

    An encoder's become `stem.conv1.weight`, `res2.0.conv1.norm.bias` and so on, without `backbone.`: Detectron2 fits
    them by their endings where the file says `matching_heuristics`. A detector's are complete and fit as they are,
    because its layers and their channels have Detectron2's order. Raises UserError for a tensor without such a name.
    """
    named = {}
    for key, tensor in state.items():
        name = key
        for pattern, new in (*_MODULES, *_LAYERS):
            name = re.sub(pattern, new, name)
        if not _KNOWN.fullmatch(name):
            raise UserError(
                f"Detectron2 has no name for the tensor '{key}': give a torchvision ResNet without its "
                "classifier, or a C4 detector"
            )
        named[name] = tensor
    return named
