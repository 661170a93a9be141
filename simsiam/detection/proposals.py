"""The region proposal network on torchvision's, where it differs from Detectron2's: anchors, precision and loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

RATIOS = (0.5, 1.0, 2.0)  # height / width


class Anchors(AnchorGenerator):
    """Boxes of each size and ratio around every cell's corner, in Detectron2's order and not rounded to pixels.

    The order is that of the head's channels: with another one, weights do not carry over.
    """

    def __init__(self, sizes: Sequence[Sequence[float]]) -> None:
        """`sizes` are the sides in pixels of the square anchors of each feature map, finest map first."""
        super().__init__(tuple(map(tuple, sizes)), (RATIOS,) * len(sizes))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Boxes (A, 4) around the origin in pixels, all ratios of the first size first."""
        sides = [(size * ratio**-0.5, size * ratio**0.5) for size in scales for ratio in aspect_ratios]
        return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=dtype, device=device)

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        # Under autocast the features have 16 bits, which know coordinates beyond 256 to two pixels only.
        super().set_cell_anchors(torch.float32, device)


class ProposalHead(RPNHead):
    """torchvision's head with float32 outputs whatever autocast makes of its layers: boxes are decoded from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features [(N, C, H, W)] -> objectness logits [(N, A, H, W)] and box deltas [(N, 4A, H, W)]."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's network with Detectron2's loss."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses (objectness, boxes): sums over the sampled anchors, divided by how many the sample has when full.

        logits (N * A, 1), deltas (N * A, 4), and per image labels (A,) of -1, 0, 1 and targets (A, 4). Boxes are fitted
        by L1 (Detectron2's SMOOTH_L1_BETA is 0), where torchvision squares errors below 1/9.
        """
        positive, negative = (torch.cat(chosen).bool() for chosen in self.fg_bg_sampler(labels))
        chosen, full = positive | negative, self.fg_bg_sampler.batch_size_per_image * len(labels)
        boxes = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        objectness = F.binary_cross_entropy_with_logits(
            objectness.flatten()[chosen], torch.cat(labels)[chosen], reduction="sum"
        )
        return objectness / full, boxes / full
