"""kNN and accuracy over ranks are those of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simsiam.data.datasets import open_dataset
from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.evaluation import knn
from simsiam.evaluation.features import Features, extract_features
from simsiam.evaluation.knn import KnnAnswer, classify, knn_accuracy, nearest, votes
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision
from tests.ranks import run_ranks

KS, TEMPERATURES = (1, 7, 50), (0.07, 0.1, 0.2)


def plain(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Scores, float64 (Q, classes): all similarities at once, sorted."""
    similarity = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    similarity, found = similarity.sort(dim=1, descending=True, stable=True)
    weights = ((similarity - similarity[:, :1]) / temperature).exp()[:, :k]
    return (F.one_hot(labels[found[:, :k]], classes) * weights.unsqueeze(2)).sum(1)


def part(features: Tensor, labels: Tensor, skipped: int = 0) -> Features:
    """What a rank of the group has of a set."""
    samples = torch.arange(len(labels))
    mine = slice(dist.get_rank(), None, dist.get_world_size()) if dist.is_initialized() else slice(None)
    return Features(F.normalize(features[mine], dim=1), labels[mine], samples[mine], skipped)


def answer(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, ks: tuple = KS) -> KnnAnswer:
    return classify(part(bank, labels), part(queries, truth), labels, 4, ks, TEMPERATURES)


def random_sets(bank: int, queries: int, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(bank, width),
        torch.randint(4, (bank,)),
        torch.randn(queries, width),
        torch.randint(4, (queries,)),
    )


def check_against_plain(got: KnnAnswer, bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> None:
    for row, k in enumerate(KS):
        for column, temperature in enumerate(TEMPERATURES):
            expected = plain(bank, labels, queries, 4, k, temperature).argmax(1)
            assert torch.equal(got.predicted[row, column], expected)
            assert got.top1[row, column] == pytest.approx(100 * (expected == truth).double().mean().item())


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(41, 10), (41, 2), (2, 5)])
def test_every_cell_equals_a_plain_float64_answer_on_any_number_of_ranks(ranks: int, sizes: tuple[int, int]) -> None:
    # Sets that the ranks do not divide, ranks without a query or without any of the bank, k above the bank.
    sets = random_sets(*sizes)
    for got in run_ranks(ranks, answer, *sets):
        check_against_plain(got, *sets)
        assert got.samples.tolist() == list(range(sizes[1]))
        assert got.bank == sizes[0]


def scores_on_a_rank(bank: Tensor, labels: Tensor, queries: Tensor, k: int) -> Tensor:
    mine = part(bank, labels)
    similarity, found = nearest(mine.features, mine.samples, F.normalize(queries, dim=1), k)
    return next(votes(similarity, labels[found], 4, [k], [0.1]))[2]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 7, 41])
def test_scores_equal_those_of_a_plain_float64_answer(ranks: int, k: int) -> None:
    bank, labels, queries, _ = random_sets(41, 9)
    expected = plain(bank, labels, queries, 4, k, 0.1)
    for scores in run_ranks(ranks, scores_on_a_rank, bank, labels, queries, k):
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def neighbours_on_a_rank(bank: Tensor, query: Tensor, k: int) -> list[int]:
    mine = part(bank, torch.zeros(len(bank), dtype=torch.int64))
    return nearest(mine.features, mine.samples, query, k)[1][0].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_equally_near_neighbours_come_in_the_order_of_their_ids(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nine of the same direction at different lengths among others, on all ranks and in several pieces of the bank.
    monkeypatch.setattr(knn, "_BANK", 2)
    bank = torch.eye(4)[[0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0]] * torch.arange(1.0, 13).unsqueeze(1)
    ids = [0, 2, 3, 5, 6, 8, 9, 10, 11, 1, 4, 7]
    for k in (1, 4, 9, 12):
        assert run_ranks(ranks, neighbours_on_a_rank, bank, torch.eye(4)[:1], k) == [ids[:k]] * ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_search_in_pieces_is_the_search_at_once(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = random_sets(50, 23)
    monkeypatch.setattr(knn, "_QUERIES", 4)
    monkeypatch.setattr(knn, "_BANK", 8)
    for got in run_ranks(ranks, answer, *sets):
        check_against_plain(got, *sets)


class Largest(TorchDispatchMode):
    """Notes the sizes, in numbers, of the tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> object:
        result = operation(*args, **(kwargs or {}))
        self.sizes += [tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        return result


def test_no_tensor_grows_with_queries_times_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_QUERIES", 64)
    monkeypatch.setattr(knn, "_BANK", 256)
    sets = random_sets(3000, 1000, width=2)
    with Largest() as made:
        answer(*sets)
    assert 64 * 256 in made.sizes
    assert max(made.sizes) == 64 * 256


def test_a_tiny_temperature_asks_the_nearest_class_alone() -> None:
    sets = random_sets(41, 30)
    cold = classify(part(*sets[:2]), part(*sets[2:]), sets[1], 4, [1, 20], [1e-9])
    assert torch.equal(cold.predicted[1], cold.predicted[0])
    assert torch.equal(cold.predicted[0, 0], plain(*sets[:3], 4, 1, 1.0).argmax(1))


def test_five_answers_are_the_best_by_score_and_none_without_a_vote() -> None:
    angles = torch.arange(8) * 0.1
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(8)  # the nearer to the query the lower
    for own, in_five in ((0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 0, 1)), (5, (0, 0, 0))):
        queries = Features(torch.tensor([[1.0, 0.0]]), torch.tensor([own]), torch.tensor([0]), 0)
        got = classify(part(bank, labels), queries, labels, 8, [1, 3, 8], [0.1])
        assert got.top1.flatten().tolist() == [100.0 * (own == 0)] * 3
        assert got.top5.flatten().tolist() == [100.0 * hit for hit in in_five]


def test_features_that_are_not_finite_are_counted_and_come_last() -> None:
    bank, labels, queries, truth = random_sets(12, 5)
    bank[3], bank[7], queries[2, 1] = torch.nan, torch.inf, torch.inf
    got = answer(bank, labels, queries, truth, (10, 12))
    assert got.not_finite == 3
    mine = part(bank, labels)
    found = nearest(mine.features, mine.samples, part(queries, truth).features, 12)[1]
    assert found[[0, 1, 3, 4], 10:].tolist() == [[3, 7]] * 4


def test_a_set_without_images_is_refused() -> None:
    some, none = random_sets(3, 2), random_sets(0, 0)
    with pytest.raises(UserError, match="no training images: none has a label; look at the set with"):
        classify(part(*none[:2]), part(*some[2:]), some[1], 4, KS, TEMPERATURES)
    with pytest.raises(UserError, match="no validation images: none of 1,200 can be read"):
        classify(part(*some[:2]), part(*none[2:], skipped=1200), some[1], 4, KS, TEMPERATURES)


class Pixels(nn.Module):
    """Random projections of the pixels: as quick an encoder as there can be."""

    feature_dim = 24

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(3 * 16 * 16, 24, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def this_rank() -> Runtime:
    return Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))


def on_digits(views: Views) -> tuple[KnnAnswer, float]:
    train, val = open_dataset("digits", "train"), open_dataset("digits", "val")
    got = knn.knn(Pixels(), train, val, views, this_rank(), ks=[10, 50, 200], temperatures=TEMPERATURES, batch=100)
    return got, knn_accuracy(Pixels(), train, val, views, this_rank(), k=50, temperature=0.2)


def test_digits_are_classified_as_by_a_plain_float64_answer_on_any_number_of_ranks() -> None:
    views, alone = Views(size=16, resize=16), Runtime(0, 1, 0, torch.device("cpu"))
    sets = [open_dataset("digits", split) for split in ("train", "val")]
    bank, queries = (extract_features(Pixels(), images, views, alone) for images in sets)
    assert torch.equal(queries.labels, torch.from_numpy(sets[1].labels))
    for got, monitored in [each for ranks in (1, 2, 3) for each in run_ranks(ranks, on_digits, views)]:
        for row, k in enumerate((10, 50, 200)):
            for column, temperature in enumerate(TEMPERATURES):
                scores = plain(bank.features, bank.labels, queries.features, 10, k, temperature)
                assert torch.equal(got.predicted[row, column], scores.argmax(1))
                best, classes = scores.topk(5, dim=1)
                hits = ((classes == queries.labels.unsqueeze(1)) & (best > 0)).any(1)
                assert got.top5[row, column] == pytest.approx(100 * hits.double().mean().item())
        assert got.top1.min() > 60
        assert monitored == got.top1[1, 2]
        assert (got.bank, len(got.samples), got.skipped, got.not_finite) == (1437, 360, 0, 0)


class Faulty(ArrayImages):
    """Random pictures, of which some are unreadable and some have no label."""

    def __init__(self, bad: tuple[int, ...] = (), unlabelled: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (11, 16, 16, 3), dtype=torch.uint8, generator=generator).numpy()
        super().__init__(pixels, torch.arange(11).numpy() % 4, "abcd", "random")
        self.labels[list(unlabelled)] = -1
        self.replaced = dict.fromkeys(bad, "damaged")


def some_features(images: ArrayImages) -> Features:
    torch.manual_seed(0)
    return extract_features(build_encoder("resnet8"), images, Views(size=16, resize=16), this_rank(), batch=5)


def test_features_are_the_same_to_the_bit_on_any_number_of_ranks() -> None:
    # A batch of one is what differs where short batches are not filled up: ten images on three ranks.
    images = Faulty(bad=(6,), unlabelled=(2,))
    (whole,) = run_ranks(1, some_features, images)
    assert whole.samples.tolist() == [0, 1, 3, 4, 5, 7, 8, 9, 10]
    assert whole.labels.tolist() == images.labels[whole.samples].tolist()
    assert whole.skipped == 1
    for ranks in (2, 3):
        parts = run_ranks(ranks, some_features, images)
        order = torch.cat([of.samples for of in parts]).argsort()
        assert torch.equal(torch.cat([of.features for of in parts])[order], whole.features)
        assert sum(of.skipped for of in parts) == 1


def test_features_are_kept_once_in_the_type_and_length_asked_for() -> None:
    views, alone = Views(size=16, resize=16), Runtime(0, 1, 0, torch.device("cpu"))
    images = open_dataset("digits", "train")
    with Largest() as made:
        half = extract_features(Pixels(), images, views, alone, batch=16, dtype=torch.float16, unit=True)
    # Memory for all is asked for at the first batch; the other place is the part of it that is full, at the end.
    whole = [place for place, size in enumerate(made.sizes) if size == half.features.numel()]
    assert len(whole) == 2
    assert whole[0] < 0.1 * len(made.sizes)
    assert half.features.dtype == torch.float16
    out = torch.empty(len(images), 24, dtype=torch.float16)
    given = extract_features(Pixels(), images, views, alone, batch=16, out=out, unit=True)
    assert given.features.data_ptr() == out.data_ptr()
    assert torch.equal(out, half.features)
    full = extract_features(Pixels(), images, views, alone, batch=16, precision=Precision("bf16", alone.device))
    assert full.features.dtype == torch.float32
    torch.testing.assert_close(half.features.float(), F.normalize(full.features, dim=1), rtol=0, atol=5e-3)
