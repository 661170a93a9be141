"""kNN and accuracy over ranks are those of one process."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.accuracy import Accuracy, evaluate_classifier
from simsiam.evaluation.knn import knn_scores
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision
from tests.ranks import run_ranks


def by_loops(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    scores = torch.zeros(len(queries), classes, dtype=torch.float64)
    for row, query in enumerate(queries.double()):
        similar = [(torch.cosine_similarity(query, b, dim=0).item(), c) for b, c in zip(bank.double(), labels.tolist())]
        for similarity, label in sorted(similar, reverse=True)[:k]:
            scores[row, label] += torch.tensor(similarity / temperature, dtype=torch.float64).exp()
    return scores


def on_a_rank(bank: Tensor, labels: Tensor, queries: Tensor, k: int) -> Tensor:
    rank, world = dist.get_rank(), dist.get_world_size()
    return knn_scores(bank[rank::world], labels[rank::world], queries, 4, k=k, temperature=0.1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_scores_equal_a_float64_loop_on_any_number_of_ranks(ranks: int, k: int) -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(41, 6), torch.randint(4, (41,)), torch.randn(9, 6)
    expected = by_loops(bank, labels, queries, 4, k, 0.1)
    for scores in run_ranks(ranks, on_a_rank, bank, labels, queries, k):
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-3)


def count(images: ArrayImages) -> Accuracy:
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    views = Views(size=8, resize=8)
    weight = torch.randn(3 * 64, 6, generator=torch.Generator().manual_seed(0))
    logits = lambda x: x.flatten(1) @ weight  # noqa: E731
    return evaluate_classifier(logits, images, views, runtime, Precision("fp32", runtime.device), batch=2)


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_every_image_counts_once_on_any_number_of_ranks(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    pixels = torch.randint(0, 256, (size, 8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
    images = ArrayImages(pixels, torch.randint(6, (size,), generator=generator).numpy(), "abcdef", "random")
    answers = [answer for ranks in (1, 2, 3) for answer in run_ranks(ranks, count, images)]
    assert answers[0].images == size
    assert set(answers) == {answers[0]}
