"""The kNN monitor of a pretraining run."""

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from simsiam.data.datasets import has_split
from simsiam.data.image_set import ImageSet
from simsiam.data.loaders import choose_centres, choose_images
from simsiam.data.open import open_images
from simsiam.data.resident import ResidentImages
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.knn import knn_accuracy
from simsiam.settings.tree import Pretrain
from simsiam.training.precision import Precision


class KnnMonitor:
    """Accuracy of the encoder's nearest neighbours on the validation split, while it trains.

    Attributes:
        why_off: why there is no monitor, empty where there is one.
    """

    def __init__(self, settings: Pretrain, train: ImageSet, runtime: Runtime) -> None:
        self._settings, self._train, self._runtime = settings, train, runtime
        self._precision = Precision(settings.precision, runtime.device)
        self._centres = choose_centres(settings, runtime.device)
        self.why_off = self._reason()
        if not self.why_off:
            val = open_images(settings, "val", runtime, classes=train.classes)
            self._val = choose_images(val, settings, runtime.is_main)[0] if isinstance(train, ResidentImages) else val

    @property
    def on(self) -> bool:
        return not self.why_off

    def _reason(self) -> str:
        if not self._settings.knn_every:
            return "--knn-every is 0"
        if not np.any(self._train.labels >= 0):
            return "the training images have no labels"
        if not has_split(self._settings.data, "val"):
            return "there is no val/ or test/ folder"
        return ""

    @property
    def cheap(self) -> bool:
        """Whether an answer costs seconds, because the sets are in memory."""
        return self.on and isinstance(self._train, ResidentImages)

    def accuracy(self, encoder: nn.Module) -> float:
        """Top-1 in percent; every rank must call it."""
        knn, settings = self._settings.knn, self._settings
        # An evaluation is too short to compile for.
        with torch.compiler.set_stance("force_eager") if settings.compile else nullcontext():
            return knn_accuracy(
                encoder, self._train, self._val, settings.views, self._runtime, k=knn.k, temperature=knn.temperature,
                precision=self._precision, centres=self._centres, show_progress=not settings.hide_progress,
            )  # fmt: skip
