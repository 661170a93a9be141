"""Names, shapes and numbers of the C4 detectors are Detectron2's.

They are derived here by hand from its source (commit 02b5c4e: modeling/backbone/resnet.py, proposal_generator/rpn.py,
roi_heads/{roi_heads,fast_rcnn,mask_head}.py, config/defaults.py, configs/Base-RCNN-C4.yaml) and from MoCo's
detection/train_net.py, which adds the norm. The totals were also read off models that this source built.
"""

import pytest
import torch

from simsiam.detection.names import detectron2_names
from simsiam.detection.rcnn import build_detector
from simsiam.errors import UserError
from simsiam.models.encoders import build_encoder


def detectron2_tensors(classes: int, mask: bool) -> dict[str, tuple[int, ...]]:
    """{name: shape} of R50-C4 with MoCo's norm after res5: parameters and batch-norm buffers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, width_in: int, width: int, side: int) -> None:
        shapes[f"{name}.weight"] = (width, width_in, side, side)
        norm(f"{name}.norm", width)

    def biased(name: str, *shape: int, width: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": (width,)})

    conv("backbone.stem.conv1", 3, 64, 7)
    width_in = 64
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        prefix, inner = "roi_heads.res5" if stage == 5 else f"backbone.res{stage}", 64 * 2 ** (stage - 2)
        for block in range(blocks):
            name, width = f"{prefix}.{block}", 4 * inner
            if width_in != width:
                conv(f"{name}.shortcut", width_in, width, 1)
            conv(f"{name}.conv1", width_in, inner, 1)
            conv(f"{name}.conv2", inner, inner, 3)
            conv(f"{name}.conv3", inner, width, 1)
            width_in = width
    norm("roi_heads.res5.norm", 2048)
    anchors = 5 * 3  # sizes x ratios
    head = "proposal_generator.rpn_head"
    biased(f"{head}.conv", 1024, 1024, 3, 3, width=1024)
    biased(f"{head}.objectness_logits", anchors, 1024, 1, 1, width=anchors)
    biased(f"{head}.anchor_deltas", 4 * anchors, 1024, 1, 1, width=4 * anchors)
    biased("roi_heads.box_predictor.cls_score", classes + 1, 2048, width=classes + 1)
    biased("roi_heads.box_predictor.bbox_pred", 4 * classes, 2048, width=4 * classes)
    if mask:
        biased("roi_heads.mask_head.deconv", 2048, 256, 2, 2, width=256)
        biased("roi_heads.mask_head.predictor", classes, 256, 1, 1, width=classes)
    return shapes


@pytest.mark.parametrize(
    ("classes", "mask", "tensors", "parameters"), [(20, False, 333, 33_234_160), (80, True, 337, 35_966_828)]
)
def test_r50_c4_has_detectron2s_names_shapes_and_parameter_count(classes, mask, tensors, parameters):
    with torch.device("meta"):
        detector = build_detector(build_encoder("resnet50"), classes, head="c4", mask=mask)
    named = {name: tuple(t.shape) for name, t in detectron2_names(detector.state_dict()).items()}
    assert named == detectron2_tensors(classes, mask)
    assert len(named) == tensors
    assert sum(p.numel() for p in detector.parameters()) == parameters
    assert all(p.requires_grad for p in detector.parameters())


def test_an_encoder_gets_the_names_of_mocos_converter():
    with torch.device("meta"):
        named = detectron2_names(build_encoder("resnet50").state_dict())
    assert len(named) == 318  # 53 convolutions and 53 norms of 5 tensors
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.shortcut.norm.bias", "res5.2.conv3.norm.weight",
            "res3.1.conv2.weight", "res4.0.shortcut.weight"} <= set(named)  # fmt: skip


def test_tensors_without_a_detectron2_name_are_refused():
    with pytest.raises(UserError, match=r"'fc\.weight'"):
        detectron2_names({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'backbone\.body\.conv1\.weight'"):
        detectron2_names(build_detector(build_encoder("resnet18"), 3, head="fpn", mask=False).state_dict())
