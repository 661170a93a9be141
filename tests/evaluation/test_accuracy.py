"""Accuracy counts each labelled, readable image once, whatever the number of ranks and the batch."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from simsiam.data.image_set import BadImage
from simsiam.data.sources.digits import digits
from simsiam.data.subsets import evenly_spaced
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.accuracy import Accuracy, evaluate_classifiers
from simsiam.evaluation.linear import LinearProbe
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision
from tests.ranks import run_ranks

CLASSES = 8


class Shades:
    """Image i is one gray that says which class its answer is; `bad` samples cannot be read."""

    classes = tuple("abcdefgh")

    def __init__(self, answers: list[int], labels: list[int], bad: tuple[int, ...] = ()) -> None:
        self.answers, self.labels, self.bad = answers, np.array(labels), bad

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, sample: int) -> str:
        return str(sample)

    def read(self, sample: int) -> torch.Tensor:
        if sample in self.bad:
            raise BadImage("torn")
        return torch.full((3, 4, 4), self.answers[sample] * 30, dtype=torch.uint8)


def logits(x: torch.Tensor) -> torch.Tensor:
    """The class is read off the gray; the further a class is from it, the lower it scores."""
    answer = x.mean((1, 2, 3), keepdim=False) * 255 / 30
    return -(answer.unsqueeze(1) - torch.arange(CLASSES)).abs()


def evaluate(images: Shades, batch: int) -> Accuracy:
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    views = Views(size=4, resize=4, mean=(0, 0, 0), std=(1, 1, 1))
    precision = Precision("fp32", runtime.device)
    return evaluate_classifiers(lambda x: logits(x)[None], images, views, runtime, precision, batch=batch)[0]


def evaluate_sizes(sizes: range, batch: int) -> list[Accuracy]:
    # Only the last is answered right; a padded or dropped image would change either number.
    return [evaluate(Shades([0] * (size - 1) + [7], [7] * size), batch) for size in sizes]


@pytest.mark.parametrize(("ranks", "batch"), [(1, 2), (2, 2), (3, 7), (4, 3)])
def test_each_image_counts_once_for_every_size(ranks: int, batch: int) -> None:
    sizes = range(1, 51)
    for of_rank in run_ranks(ranks, evaluate_sizes, sizes, batch):
        for size, accuracy in zip(sizes, of_rank, strict=True):
            assert (accuracy.images, accuracy.skipped) == (size, 0)
            assert accuracy.top1 == pytest.approx(100 / size)
            assert accuracy.top5 == pytest.approx(100 / size)


@pytest.mark.parametrize("ranks", [1, 3])
def test_top5_unlabelled_and_unreadable_images(ranks: int) -> None:
    # Sample 0 right, 1 in the first five, 2 beyond them, 3 unlabelled, 4 unreadable.
    images = Shades([0, 0, 0, 0, 0], [0, 3, 7, -1, 0], bad=(4,))
    for accuracy in run_ranks(ranks, evaluate, images, 2):
        assert (accuracy.images, accuracy.skipped) == (3, 1)
        assert accuracy.top1 == pytest.approx(100 / 3)
        assert accuracy.top5 == pytest.approx(200 / 3)


def test_batch_size_does_not_matter() -> None:
    images = Shades([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 0, 5, 7])
    answers = [run_ranks(1, evaluate, images, batch)[0] for batch in (1, 3, 100)]
    assert answers[0].top1 == pytest.approx(400 / 7)
    assert set(answers) == {answers[0]}


def of_a_network(images: object) -> list[Accuracy]:
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    torch.manual_seed(0)
    probe = LinearProbe(build_encoder("resnet8"), 10, ("a", "b")).eval()
    torch.nn.init.normal_(probe.heads[1].weight)
    precision = Precision("fp32", runtime.device)
    return evaluate_classifiers(probe.logits, images, Views(size=16, resize=16), runtime, precision, heads=2, batch=50)


def test_a_network_answers_alike_on_one_two_and_three_ranks() -> None:
    """On 361 images, which two and three ranks do not divide, nor batches of 50."""
    images = evenly_spaced(digits("train"), 361)
    alone = run_ranks(1, of_a_network, images)[0]
    assert [head.images for head in alone] == [361, 361]
    assert alone[0].confusion.tolist() != alone[1].confusion.tolist()
    for ranks in (2, 3):
        for of_rank in run_ranks(ranks, of_a_network, images):
            assert of_rank == alone
            assert [head.confusion.tolist() for head in of_rank] == [head.confusion.tolist() for head in alone]
