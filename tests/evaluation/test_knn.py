"""kNN and accuracy over ranks are those of one process."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation import knn
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


@pytest.mark.parametrize("ranks", [1, 3])
def test_equally_near_neighbours_count_as_many_as_k_says(ranks: int) -> None:
    # Six of the same direction at different lengths, on all ranks, then others: k of the six vote, of one class.
    bank = torch.cat([torch.eye(4)[:1] * torch.arange(1.0, 7).unsqueeze(1), torch.eye(4)[1:].repeat(2, 1)])
    labels = torch.tensor([2] * 6 + [0, 1, 3] * 2)
    for k in (1, 4, 6):
        for scores in run_ranks(ranks, on_a_rank, bank, labels, torch.eye(4)[:1], k):
            expected = torch.tensor([[0, 0, k * math.exp(10), 0]])
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)


def test_a_rank_without_any_of_the_bank_takes_part() -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(2, 6), torch.tensor([3, 1]), torch.randn(5, 6)
    expected = by_loops(bank, labels, queries, 4, 2, 0.1)
    for scores in run_ranks(3, on_a_rank, bank, labels, queries, 4):
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-3)


def test_more_queries_than_go_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(20, 6), torch.randint(4, (20,)), torch.randn(11, 6)
    whole = knn_scores(bank, labels, queries, 4, k=5)
    monkeypatch.setattr(knn, "_QUERIES", 4)
    torch.testing.assert_close(knn_scores(bank, labels, queries, 4, k=5), whole)


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
