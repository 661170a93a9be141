"""The second stage on torchvision's RoIHeads, as Detectron2 has it: pooling, predictions, losses of boxes and masks."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align


class RegionPooler(nn.Module):
    """Crops of feature maps under boxes by RoIAlign with half-pixel alignment and as many samples as a bin has cells.

    These are Detectron2's ROIAlignV2 and POOLER_SAMPLING_RATIO 0; torchvision's pooler has no alignment to switch on.
    """

    def __init__(self, side: int, strides: tuple[int, ...]) -> None:
        """`side` is the crop's size in cells; `strides` are the maps' in pixels, each twice the last."""
        super().__init__()
        self.side, self.strides = side, strides

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        """The first maps [(N, C, H, W)], one a stride, and boxes [(R_i, 4)] in pixels -> (sum R_i, C, side, side).

        Float32 whatever the features are: coordinates of 16 bits are off by pixels. `shapes` is torchvision's, unused.
        """
        maps = list(features.values())[: len(self.strides)]
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1).float()
        if len(maps) == 1:
            return self._crop(maps[0], rois, self.strides[0])
        levels = self._levels(rois[:, 1:])
        crops = [self._crop(maps[i], rois[levels == i], stride) for i, stride in enumerate(self.strides)]
        back = torch.cat([torch.where(levels == i)[0] for i in range(len(maps))]).argsort()
        return torch.cat(crops)[back]

    def _crop(self, features: Tensor, rois: Tensor, stride: int) -> Tensor:
        return roi_align(features.float(), rois, self.side, 1 / stride, sampling_ratio=0, aligned=True)

    def _levels(self, boxes: Tensor) -> Tensor:
        """The index of each box's map (R, 4) -> (R,): stride 16 from 224 pixels on, a halving is one finer (FPN)."""
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(4 + torch.log2(size / 224 + 1e-8))
        finest = self.strides[0].bit_length() - 1
        return level.clamp(finest, finest + len(self.strides) - 1).long() - finest


class BoxPredictor(nn.Module):
    """Class scores and a box per class. The layers are Detectron2's, background last and without a box of its own."""

    def __init__(self, width: int, num_classes: int) -> None:
        """`width` features a region; `num_classes` without background."""
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, num_classes * 4)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, width) or maps (R, width, h, w), which are averaged -> logits (R, K + 1) and deltas (R, 4 (K + 1)).

        Float32, and as torchvision wants it: background first, its box all zero.
        """
        x = x.mean((2, 3)) if x.dim() == 4 else x
        return self.cls_score(x).float().roll(1, dims=1), F.pad(self.bbox_pred(x).float(), (4, 0))


class MaskHead(nn.Sequential):
    """Convolutions, a doubling of the resolution, and a mask for each class."""

    def __init__(self, width: int, num_classes: int, convolutions: int, hidden: int = 256) -> None:
        """`width` channels in; `num_classes` without background; as many 3x3 `convolutions` before the doubling."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, convolutions + 1):
            layers[f"mask_fcn{i}"] = nn.Conv2d(width, hidden, 3, padding=1)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            width = hidden
        layers["deconv"] = nn.ConvTranspose2d(width, hidden, 2, stride=2)
        layers["relu"] = nn.ReLU(inplace=True)
        layers["predictor"] = nn.Conv2d(hidden, num_classes, 1)
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(R, width, h, w) -> logits (R, K, 2h, 2w), float32."""
        return super().forward(x).float()


class RegionHeads(RoIHeads):
    """torchvision's sampling, matching and suppression, with Detectron2's losses and masks.

    Without `mask_roi_pool` the mask head continues from the box head's maps (C4); with it, from its own crops (FPN).
    """

    def has_mask(self) -> bool:
        return self.mask_head is not None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Training: no detections, and the losses; evaluation: [{boxes, labels, scores[, masks (n, 1, M, M)]}], none.

        Proposals [(R_i, 4)] in pixels of the batch. Raises ValueError where a target lacks boxes, labels or masks.
        """
        if self.training:
            return [], self._losses(features, *self.select_training_samples(proposals, targets), image_shapes, targets)
        maps = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        found = self.postprocess_detections(*self.box_predictor(maps), proposals, image_shapes)
        result = [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(*found)]
        if self.has_mask():
            boxes = [r["boxes"] for r in result]
            crops = self._mask_crops(features, boxes, image_shapes)
            masks = of_class(self.mask_head(crops), torch.cat([r["labels"] for r in result])).sigmoid()
            for detections, mask in zip(result, masks[:, None].split([len(b) for b in boxes])):
                detections["masks"] = mask
        return result, {}

    def _losses(self, features, proposals, matched, labels, deltas, shapes, targets) -> dict[str, Tensor]:
        maps = self.box_head(self.box_roi_pool(features, proposals, shapes))
        losses = dict(zip(("loss_classifier", "loss_box_reg"), box_losses(*self.box_predictor(maps), labels, deltas)))
        if self.has_mask():
            positive = [torch.where(label > 0)[0] for label in labels]
            boxes = [box[p] for box, p in zip(proposals, positive)]
            if self.mask_roi_pool is None:
                crops = maps[torch.cat(labels) > 0]  # the box head has computed them already
            else:
                crops = self.mask_roi_pool(features, boxes, shapes)
            truth = [mask_targets(t["masks"], b, m[p], crops.shape[-1] * 2)
                     for t, b, m, p in zip(targets, boxes, matched, positive)]  # fmt: skip
            logits = of_class(self.mask_head(crops), torch.cat([label[p] for label, p in zip(labels, positive)]))
            # A sum and not a mean: without a positive region the loss is 0, and every parameter has its gradient.
            loss = F.binary_cross_entropy_with_logits(logits, torch.cat(truth), reduction="sum")
            losses["loss_mask"] = loss / max(logits.numel(), 1)
        return losses

    def _mask_crops(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        if self.mask_roi_pool is None:
            return self.box_head(self.box_roi_pool(features, boxes, shapes))
        return self.mask_roi_pool(features, boxes, shapes)


def box_losses(logits: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(Cross-entropy, L1 of the true class's box), both summed and divided by the number of regions R.

    logits (R, K + 1), deltas (R, 4 (K + 1)); per image labels (R_i,), 0 is background, and box targets (R_i, 4).
    Detectron2's SMOOTH_L1_BETA is 0, plain L1; torchvision squares errors below 1/9.
    """
    label, target = torch.cat(labels), torch.cat(targets)
    positive = torch.where(label > 0)[0]
    fitted = deltas.view(len(label), -1, 4)[positive, label[positive]]
    boxes = F.l1_loss(fitted, target[positive], reduction="sum")
    regions = max(len(label), 1)
    return F.cross_entropy(logits, label, reduction="sum") / regions, boxes / regions


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """Masks (N, H, W) of the image, cut to boxes (R, 4), of each the mask `matched` (R,): 0 or 1 as (R, side, side)."""
    if not len(boxes):
        return boxes.new_zeros(0, side, side)
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    return (roi_align(masks[:, None].to(boxes), rois, side, 1.0, sampling_ratio=0, aligned=True)[:, 0] >= 0.5).float()


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """From mask logits (R, K, M, M) those of each region's label (R,) in 1..K: (R, M, M)."""
    return logits[torch.arange(len(labels), device=labels.device), labels - 1]
