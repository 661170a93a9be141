"""What a run says of the sets that it trains and validates on."""

import numpy as np
import pytest

from simsiam.data.subsets import Subset
from simsiam.evaluation.labelled_sets import LabelledSets


class Labels:
    """An image set of labels alone."""

    classes = ("a", "b", "c", "d")

    def __init__(self, *labels: int) -> None:
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        ((0, 1, 2, 3), (0, 1), "4 classes, 4 images, 2 to validate on"),
        ((0, 0, 2), (0, 1, 1, 3, -1), "4 classes, 3 images (none of 2 of the classes), 5 to validate on"),
    ],
)
def test_classes_without_a_training_image_are_told(train, val, told) -> None:
    whole = Labels(*train)
    assert LabelledSets(whole, whole, None, Labels(*val), "", "").told() == told


def test_held_out_images_are_told() -> None:
    whole = Labels(0, 1, 2, 3, 3)
    parts = Subset(whole, [0, 1, 2, 3]), Subset(whole, [4])
    told = LabelledSets(whole, *parts, Labels(3), "", "").told()
    assert told == "4 classes, 4 images, 1 to validate on, 1 held out"
