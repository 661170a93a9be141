"""The table and the picture of a confusion, also where a class has no image."""

import csv
from pathlib import Path

import torch
from torchvision.io import decode_image

from simsiam.evaluation.accuracy import Accuracy, Tally
from simsiam.evaluation.confusion import write_confusion


def test_counts_of_several_heads_are_counted_apart() -> None:
    tally = Tally(2, 6, torch.device("cpu"))
    labels = torch.tensor([0, 0, 1, 5])
    first, second = torch.eye(6)[[0, 1, 1, 5]], torch.eye(6)[[5, 5, 5, 5]]
    for rows in (slice(0, 3), slice(3, 4)):
        tally.add(torch.stack([first, second])[:, rows], labels[rows])
    a, b = tally.over_ranks()
    assert (a.top1, b.top1, a.images) == (75, 25, 4)
    assert a.confusion.tolist()[0] == [1, 1, 0, 0, 0, 0]
    assert b.confusion[:, 5].tolist() == [2, 1, 0, 0, 0, 1]
    assert a.confusion.sum() == b.confusion.sum() == 4


def test_the_mean_over_classes_leaves_out_those_without_an_image() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    assert Accuracy(62.5, 100.0, 8, 0, confusion).mean_per_class == 62.5


def test_the_table_names_each_class_and_what_it_is_taken_for(tmp_path: Path) -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    write_confusion(confusion, ("cat, tabby", "none", "dog"), tmp_path)
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open(newline="")))
    assert [tuple(row.values()) for row in rows] == [
        ("cat, tabby", "4", "75.00", "none", "1"), ("none", "0", "", "", "0"), ("dog", "4", "50.00", "cat, tabby", "2"),
    ]  # fmt: skip


def test_the_picture_is_bright_where_the_confusion_is(tmp_path: Path) -> None:
    """Of 40 classes, whose names find no room."""
    confusion = torch.eye(40, dtype=torch.int64) * 5
    write_confusion(confusion, tuple(map(str, range(40))), tmp_path)
    picture = decode_image(str(tmp_path / "confusion.png")).float()[:3]
    assert min(picture.shape[1:]) > 400
    middle = picture[
        :, picture.shape[1] // 3 : 2 * picture.shape[1] // 3, picture.shape[2] // 3 : 3 * picture.shape[2] // 5
    ]
    assert middle.min() < 30  # off the diagonal
    assert middle.amax((1, 2)).min() > 150  # on it: magma ends in pale yellow
