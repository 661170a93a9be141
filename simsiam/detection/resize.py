"""Images to one batch at the network's size, and detections back to the size of their image, as Detectron2 does it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from simsiam.errors import UserError


def resized_shape(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """The size (height, width) in pixels whose shorter side is `shorter`, or less where the other exceeds `longest`.

    Rounded to the nearest pixel and never below one, however long and thin the image is.
    """
    scale = min(shorter / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class Resize(GeneralizedRCNNTransform):
    """torchvision's normalising and batching, with Detectron2's resizing and pasting of masks.

    torchvision's own rounds sizes down, to nothing for an image of 10,000 x 5 pixels, and puts masks on whole pixels.
    In training each image's shorter side is one of `min_size`, from torch's generator; in evaluation it is `test_size`.

    Attributes:
        pastes_masks: give masks the size of their image; else they stay in their boxes, a hundredth of the memory.
    """

    def __init__(
        self,
        min_size: Sequence[int],
        test_size: int,
        max_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        divisor: int,
    ) -> None:
        """Sizes in pixels; `mean` and `std` of RGB in 0..1; the batch is padded to multiples of `divisor`."""
        super().__init__(tuple(min_size), max_size, list(mean), list(std), divisor)
        self.test_size, self.pastes_masks = test_size, True

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image (3, H, W), target with boxes (N, 4) in pixels and maybe masks (N, H, W) -> both at the new size.

        Raises UserError for an image without a pixel.
        """
        height, width = image.shape[-2:]
        if not height or not width:
            raise UserError(f"An image of {width} x {height} pixels cannot be searched for objects; leave it out")
        shorter = self.torch_choice(self.min_size) if self.training else self.test_size
        shape = resized_shape(height, width, shorter, self.max_size)
        # Antialiased, which only shrinking notices: so PIL resizes for Detectron2.
        image = F.interpolate(image[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]
        if target is None:
            return image, None
        target["boxes"] = resize_boxes(target["boxes"], (height, width), shape)
        if "masks" in target:
            masks = target["masks"].to(torch.uint8)
            target["masks"] = (
                F.interpolate(masks[:, None], shape, mode="nearest-exact")[:, 0]
                if len(masks)
                else masks.new_zeros(0, *shape)
            )
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], shapes: list[tuple[int, int]], originals: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes, and masks (n, 1, M, M) of probabilities in their box, at the images' own sizes: masks (n, 1, H, W)."""
        for detections, shape, original in zip(result, shapes, originals):
            detections["boxes"] = resize_boxes(detections["boxes"], shape, original)
            if "masks" in detections and self.pastes_masks:
                detections["masks"] = paste_masks(detections["masks"], detections["boxes"], original)
        return result


def paste_masks(masks: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Masks (n, 1, M, M), each stretched over its box (n, 4) in pixels -> (n, 1, H, W), zero where the box is not.

    Sampled at the centres of pixels, bilinearly, so that half of a pixel is not lost to rounding the box.
    """
    height, width = shape
    pasted = masks.new_zeros(len(masks), 1, height, width)
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        # A pixel more on each side: the bilinear kernel reaches beyond the box.
        x1, x2 = max(0, int(left) - 1), min(width, int(right) + 2)
        y1, y2 = max(0, int(top) - 1), min(height, int(bottom) + 2)
        if x1 >= x2 or y1 >= y2:
            continue
        x = (torch.arange(x1, x2, device=masks.device) + 0.5 - left) / max(right - left, 1e-6) * 2 - 1
        y = (torch.arange(y1, y2, device=masks.device) + 0.5 - top) / max(bottom - top, 1e-6) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(masks.dtype)
        pasted[i, 0, y1:y2, x1:x2] = F.grid_sample(masks[i : i + 1], grid, align_corners=False)[0, 0]
    return pasted
