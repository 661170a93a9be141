"""A detector over a set: each rank a part, each image once and by itself, so any number of ranks answers alike."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from simsiam.detection.annotations import DetectionSet
from simsiam.detection.batches import images_to_test
from simsiam.detection.coco_metrics import encode_masks
from simsiam.detection.detections import Detections, Rle
from simsiam.detection.model import as_float
from simsiam.detection.resize import paste_masks
from simsiam.detection.sets import DetectionData, Scores
from simsiam.distributed.collectives import sum_over_ranks
from simsiam.distributed.runtime import Runtime
from simsiam.settings.detect import Detect

_MASK_PIXELS = 1 << 27  # of masks at their image's size that are held at a time
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What was found, on rank 0, None on the others; and how many images of all ranks could not be read."""

    detections: Detections | None
    unreadable: int


class Answer(NamedTuple):
    """The scores of a test, on every rank, and what they were computed from."""

    scores: Scores
    detections: Detections | None
    unreadable: int


def detect_and_score(rcnn: GeneralizedRCNN, data: DetectionData, settings: Detect, runtime: Runtime) -> Answer:
    """Finds and scores on the test set. Every rank must call it."""
    describe = "" if settings.hide_progress or not runtime.is_main else "testing"
    found = detect(rcnn, data.test, runtime, settings.workers, describe=describe)
    scores = runtime.on_main(lambda: data.score(found.detections, masks=rcnn.roi_heads.has_mask()))
    return Answer(scores, *found)


@torch.no_grad()
def detect(rcnn: GeneralizedRCNN, images: DetectionSet, runtime: Runtime, workers: int, *, describe: str = "") -> Found:
    """What the detector finds on every image of the set, in float32. Every rank must call it.

    An image that cannot be read has no detections. `describe` names the progress bar; without it there is none.
    """
    was_training = rcnn.training
    rcnn.eval()
    rcnn.transform.pastes_masks = False
    found, unreadable = Detections(), 0
    numbers = range(runtime.rank, len(images), runtime.world_size)
    bar = tqdm(images_to_test(images, numbers, workers), describe, len(numbers), unit=" images", leave=False,
               disable=None if describe else True)  # fmt: skip
    for number, pixels, why in bar:
        if pixels is None:
            _log.warning("%s cannot be read (%s): nothing is found in it", images.name(number), why)
            found.add(number, [], [], [])
            unreadable += 1
            continue
        (result,) = rcnn([as_float(pixels.to(runtime.device))])
        shape = tuple(pixels.shape[1:])
        masks = _encoded(result["masks"], result["boxes"], shape) if "masks" in result else None
        found.add(number, result["boxes"], result["scores"], result["labels"], masks)
    rcnn.train(was_training)
    total = sum_over_ranks(torch.tensor([unreadable], device=runtime.device))
    return Found(found.gather(everywhere=False), int(total))


def _encoded(masks: Tensor, boxes: Tensor, shape: tuple[int, int]) -> list[Rle]:
    """Masks (n, 1, M, M) in boxes (n, 4) as run lengths at the size of the image, cut at one half."""
    at_once = max(1, _MASK_PIXELS // (shape[0] * shape[1]))
    encoded: list[Rle] = []
    for some, around in zip(masks.split(at_once), boxes.split(at_once)):
        encoded += encode_masks(paste_masks(some, around, shape)[:, 0] >= 0.5)
    return encoded
