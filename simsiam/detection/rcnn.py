"""Faster and Mask R-CNN on a pretrained encoder, with the numbers of Detectron2 that MoCo and SimSiam transfer with.

What Detectron2 does and torchvision does not: RoIAlign with half-pixel alignment, anchors not rounded, L1 for boxes,
masks cut at one half, sizes rounded to nearest. Batch-norms are plain and train; who trains on several ranks replaces
them (`per_view_batchnorm(detector, 1)`). Every random choice (image size, sampled anchors and regions) is drawn from
torch's generators: seed them for each step, and a run can be resumed exactly.
"""

import copy
from collections.abc import Sequence

from torch import nn
from torchvision.models import ResNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from simsiam.detection import c4, fpn
from simsiam.detection.proposals import RATIOS, Anchors, ProposalHead, ProposalNetwork
from simsiam.detection.regions import BoxPredictor, MaskHead, RegionHeads, RegionPooler
from simsiam.detection.resize import Resize
from simsiam.errors import UserError

HEADS = ("c4", "fpn")
# ImageNet's, of RGB in 0..1, which our encoders are trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Proposals of an image (of each map with a pyramid) before suppression and of an image after: (training, evaluation).
PRE_NMS = {"c4": (12000, 6000), "fpn": (2000, 1000)}
POST_NMS = {"c4": (2000, 1000), "fpn": (1000, 1000)}


def build_detector(
    encoder: nn.Module,
    num_classes: int,
    *,
    head: str,
    mask: bool,
    extra_norm: bool = True,
    min_size: int | Sequence[int] = 800,
    test_size: int | None = None,
    max_size: int = 1333,
    image_mean: Sequence[float] = MEAN,
    image_std: Sequence[float] = STD,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    pre_nms: tuple[int, int] | None = None,
    post_nms: tuple[int, int] | None = None,
    anchor_batch: int = 256,
    region_batch: int = 512,
    region_side: int | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_detections: int = 100,
) -> GeneralizedRCNN:
    """A detector with a copy of `encoder`, all of it training, in torchvision's calling convention.

    Training: `detector(images, targets)` -> {name: loss}; evaluation: `detector(images)` -> [{boxes (n, 4) in the
    image's pixels, scores (n,), labels (n,) in 1..num_classes[, masks (n, 1, H, W), probabilities]}]. Images are
    float (3, H, W) in 0..1 of any size; targets have boxes (N, 4) as left, top, right, bottom in pixels, int64 labels
    (N,) from 1, with `mask` also masks (N, H, W) of 0 and 1. N may be 0.

    encoder: a torchvision ResNet with the stem for large images. Raises UserError for any other.
    num_classes: without background.
    head: "c4" is layer4 over each region, "fpn" is a feature pyramid with two linear layers.
    extra_norm: batch-norm in what is new: behind layer4 ("c4") or in the pyramid's convolutions ("fpn").
    min_size, test_size, max_size: pixels of the shorter side, one drawn for each image in training; of that in
        evaluation, by default the last of these; and the most of the longer side.
    anchor_sizes: sides of the square anchors in pixels, on each cell ("c4") or one a map ("fpn", five).
    pre_nms, post_nms: proposals kept before and after suppression, (training, evaluation); default by head.
    anchor_batch, region_batch: how many of an image the losses sample.
    region_side: cells of a region's crop to a side; default 14 ("c4") or 7 ("fpn").
    score_threshold, nms_threshold, max_detections: what evaluation keeps, the last of an image.
    """
    _check(encoder, num_classes, head, anchor_sizes)
    encoder = copy.deepcopy(encoder).requires_grad_(True).train()
    side = region_side or {"c4": 14, "fpn": 7}[head]
    if head == "c4":
        backbone = c4.Trunk(encoder)
        box_head = c4.Res5(encoder, extra_norm)
        strides, divisor, sizes, width = (16,), 16, [anchor_sizes], box_head.out_channels
        masks = {"mask_head": MaskHead(width, num_classes, convolutions=0)}
    else:
        backbone = fpn.pyramid(encoder, extra_norm)
        box_head = fpn.box_head(backbone.out_channels, side)
        strides, divisor, sizes, width = fpn.STRIDES, 32, [[size] for size in anchor_sizes], 1024
        masks = {
            "mask_roi_pool": RegionPooler(14, strides),
            "mask_head": MaskHead(backbone.out_channels, num_classes, convolutions=4),
        }
    keep = [dict(zip(("training", "testing"), given or by_head[head]))
            for given, by_head in ((pre_nms, PRE_NMS), (post_nms, POST_NMS))]  # fmt: skip
    rpn = ProposalNetwork(
        Anchors(sizes),
        ProposalHead(backbone.out_channels, len(sizes[0]) * len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=anchor_batch,
        positive_fraction=0.5,
        pre_nms_top_n=keep[0],
        post_nms_top_n=keep[1],
        nms_thresh=0.7,
    )
    heads = RegionHeads(
        RegionPooler(side, strides),
        box_head,
        BoxPredictor(width, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=region_batch,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=max_detections,
        **(masks if mask else {}),
    )
    # The batch is padded to whole strides, so that every cell of a map stands for as many pixels.
    shorter = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    resize = Resize(shorter, test_size or shorter[-1], max_size, image_mean, image_std, divisor)
    return GeneralizedRCNN(backbone, rpn, heads, resize)


def check_encoder(encoder: nn.Module) -> None:
    """Raises UserError for an encoder that cannot become a detector."""
    if not isinstance(encoder, ResNet) or not isinstance(encoder.maxpool, nn.MaxPool2d):
        raise UserError(
            f"The encoder {getattr(encoder, 'encoder_name', type(encoder).__name__)} cannot become a detector: give "
            "one of torchvision's ResNets with the stem for large images, such as resnet18 or resnet50"
        )


def _check(encoder: nn.Module, num_classes: int, head: str, anchor_sizes: Sequence[float]) -> None:
    check_encoder(encoder)
    if head not in HEADS:
        raise UserError(f"There is no detector head '{head}': give one of {', '.join(HEADS)}")
    if num_classes < 1:
        raise UserError(f"A detector of {num_classes} classes finds nothing: give at least one")
    if head == "fpn" and len(anchor_sizes) != len(fpn.STRIDES) + 1:
        raise UserError(f"A pyramid has five maps, and {len(anchor_sizes)} anchor sizes were given: give one a map")
