"""What a classifier is fed with: augmented crops, or cached features; and how it is tested on the like."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from simsiam.data.augment import Augment
from simsiam.data.crops import Crops, Loader
from simsiam.data.image_set import ImageSet
from simsiam.data.loaders import choose_centres, make_loader
from simsiam.data.plan import Plan
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.accuracy import Accuracy, evaluate_classifiers
from simsiam.evaluation.feature_cache import CachedFeatures, FeatureLoader, cache_features, evaluate_features
from simsiam.evaluation.labelled_sets import LabelledSets
from simsiam.settings.tree import Classify
from simsiam.training.precision import Precision

Logits = Callable[[Tensor], Tensor]


class ImageInputs:
    """An augmented crop of each image to train on, the centre crop to test on."""

    def __init__(self, settings: Classify, runtime: Runtime) -> None:
        self._settings, self._runtime = settings, runtime
        self._precision = Precision(settings.precision, runtime.device)
        self._augment = Augment(settings.views, settings.seed).to(runtime.device)
        self._centres = choose_centres(settings, runtime.device)

    def loader(self, images: ImageSet, plan: Plan) -> Loader:
        """This rank's micro-batches of a plan over a set."""
        return make_loader(images, plan, self._settings, 1, self._runtime.device)

    def __call__(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """A micro-batch -> views float32 (1, N, 3, S, S) and labels int64 (N,), on the device."""
        labels = crops.labels.to(self._runtime.device, non_blocking=True)
        return self._augment(crops.images, crops.samples, crops.epoch), labels

    def accuracies(self, logits: Logits, images: ImageSet, heads: int = 1) -> list[Accuracy]:
        """Of K = `heads` classifiers, images (N, 3, S, S) -> (K, N, C); every rank must call it."""
        return evaluate_classifiers(
            logits, images, self._settings.views, self._runtime, self._precision,
            heads=heads, centres=self._centres, show_progress=not self._settings.hide_progress,
        )  # fmt: skip


class FeatureInputs:
    """Features of the centre crops of a frozen encoder, for both.

    Args:
        encoder: moved to the device.
        folder: where the features are kept.
    """

    def __init__(self, settings: Classify, runtime: Runtime, encoder: nn.Module, folder: Path) -> None:
        self._settings, self._runtime, self._folder = settings, runtime, folder
        self._precision = Precision(settings.precision, runtime.device)
        self._encoder = encoder.to(runtime.device, memory_format=torch.channels_last)
        self._centres = choose_centres(settings, runtime.device)

    def cached(self, sets: LabelledSets) -> LabelledSets:
        """The sets as `CachedFeatures`, computed where they are not there; every rank must call it."""

        def of(images: ImageSet, name: str) -> CachedFeatures:
            return cache_features(
                self._encoder, images, self._settings.views, self._runtime, self._folder / name, self._precision,
                centres=self._centres, describe="" if self._settings.hide_progress else f"features of {name}",
            )  # fmt: skip

        held_out = None if sets.held_out is None else of(sets.held_out, "held_out")
        return sets._replace(train=of(sets.train, "train"), held_out=held_out, val=of(sets.val, "val"))

    def loader(self, features: CachedFeatures, plan: Plan) -> Loader:
        """This rank's micro-batches of a plan over the features of a set."""
        return FeatureLoader(features, plan, self._settings.accumulate)

    def __call__(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """A micro-batch -> features float16 (N, D) and labels int64 (N,), on the device."""
        device = self._runtime.device
        return crops.images.to(device, non_blocking=True), crops.labels.to(device, non_blocking=True)

    def accuracies(self, logits: Logits, features: CachedFeatures, heads: int = 1) -> list[Accuracy]:
        """Of K = `heads` classifiers, features (N, D) -> (K, N, C); every rank must call it."""
        show = not self._settings.hide_progress
        return evaluate_features(logits, features, self._runtime, heads=heads, show_progress=show)
