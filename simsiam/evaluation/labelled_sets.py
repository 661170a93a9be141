"""What lincls.py and semisup.py train on, choose on and validate on."""

from functools import partial
from typing import NamedTuple

import numpy as np

from simsiam.data.image_set import ImageSet
from simsiam.data.loaders import choose_images
from simsiam.data.open import open_images
from simsiam.data.subsets import hold_out
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.evaluation.ledger import data_hash
from simsiam.settings.tree import Classify

_MOST_HELD_OUT = 10_000  # BYOL chooses its rates on 10,009 of ImageNet's training images (appendix C.1)


class LabelledSets(NamedTuple):
    """Sets that share the classes of `whole`, ready for the run's loader.

    Attributes:
        whole: all training images, of `--subset` where there is one.
        train: `whole`, without `held_out`.
        held_out: training images to choose a sweep's best on; None where none are held out.
        loader_is: the loader, and why.
        sha256: of the names and labels of all training and validation images (see `data_hash`).
    """

    whole: ImageSet
    train: ImageSet
    held_out: ImageSet | None
    val: ImageSet
    loader_is: str
    sha256: str

    def told(self) -> str:
        """Classes and images in words, and how many classes validation asks for that no training image shows."""
        unseen = len(np.setdiff1d(self.val.labels[self.val.labels >= 0], self.train.labels))
        none_of = f" (none of {unseen} of the classes)" if unseen else ""
        held_out = f", {len(self.held_out):,} held out" if self.held_out is not None else ""
        return (
            f"{len(self.whole.classes)} classes, {len(self.train):,} images{none_of}, "
            f"{len(self.val):,} to validate on{held_out}"
        )


def open_labelled(settings: Classify, runtime: Runtime) -> LabelledSets:
    """The sets of a run. Raises UserError where an image to train on has no label."""
    opened = open_images(settings, "train", runtime)
    if not opened.classes or (opened.labels < 0).any():
        raise UserError(f"{settings.data} has images without a label; classification needs train/CLASS/ folders")
    val = open_images(settings, "val", runtime, opened.classes)
    if not (val.labels >= 0).any():
        raise UserError(f"{settings.data} has no labelled validation images; classification needs val/CLASS/ folders")
    sha256 = runtime.on_main(partial(data_hash, opened, val))  # a second or two of ImageNet
    whole, loader_is = choose_images(opened, settings, runtime.is_main)
    val, _ = choose_images(val, settings, runtime.is_main)
    count = settings.held_out or (min(len(whole) // 5, _MOST_HELD_OUT) if settings.sweep else 0)
    if not 0 <= count < len(whole):
        raise UserError(f"--held-out {count} leaves nothing of {len(whole)} training images to train on; take fewer")
    train, held_out = hold_out(whole, count) if count else (whole, None)
    if held_out is not None:
        # A part of a resident set is no longer one array.
        train, held_out = (choose_images(part, settings, False)[0] for part in (train, held_out))
    return LabelledSets(whole, train, held_out, val, loader_is, sha256)
