"""Weighted nearest-neighbour classification on frozen features (Wu et al. 2018, section 3.4).

The bank stays shared out over the ranks, and no more than `_QUERIES` x `_BANK` similarities are in memory at a time.
Neighbours are in order of similarity and, where equal, of sample id: their choice does not depend on how the bank is
shared out. On a CPU the similarities are float64 sums, so that rounding does not decide either.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.distributed.collectives import gather_equal, gather_rows, sum_over_ranks, world_size
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.evaluation.features import Features, extract_features
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision

_QUERIES, _BANK = 1024, 8192  # rows at a time
_GRID = 2.0**30  # a similarity is a whole number of 1 / _GRID
_IDS = 2**32 - 1  # the largest sample id


class KnnAnswer(NamedTuple):
    """What the neighbours say, the same on every rank. K rows are the k, T columns the temperatures.

    Attributes:
        top1, top5: float64 (K, T), percent of the queries whose class is the first, or of the first five, by score.
        predicted: int64 (K, T, Q), the first class of each query; the lower number of equal ones.
        samples: int64 (Q,), sample ids of the queries, ascending.
        bank: images that vote.
        bank_skipped, skipped: images of the bank and queries that could not be read.
        not_finite: images of either kind whose features have NaN or infinity; they are nobody's neighbours but last.
    """

    top1: Tensor
    top5: Tensor
    predicted: Tensor
    samples: Tensor
    bank: int
    bank_skipped: int
    skipped: int
    not_finite: int


def knn(
    encoder: nn.Module,
    train: ImageSet,
    val: ImageSet,
    views: Views,
    runtime: Runtime,
    *,
    ks: Sequence[int] = (200,),
    temperatures: Sequence[float] = (0.1,),
    batch: int = 256,
    precision: Precision | None = None,
    centres: CentreBatches = centre_batches,
    show_progress: bool = False,
) -> KnnAnswer:
    """The labelled validation images among the labelled training images, on all ranks together, which all must call it.

    Features are kept as float16 on a GPU and as float32 on a CPU, at length 1. For the rest see `classify`.

    Args:
        batch: images of a forward pass on each rank.
        precision: of the forward pass; float32 by default.
    """
    show = show_progress and runtime.is_main
    dtype = torch.float16 if runtime.device.type == "cuda" else torch.float32
    bank, queries = (
        extract_features(
            encoder, images, views, runtime, batch=batch, centres=centres, precision=precision, dtype=dtype, unit=True,
            describe=f"kNN {what}" if show else "",
        )
        for images, what in ((train, "bank"), (val, "queries"))
    )  # fmt: skip
    return classify(
        bank, queries, torch.from_numpy(train.labels), len(train.classes), ks, temperatures, show_progress=show
    )


def knn_accuracy(
    encoder: nn.Module,
    train: ImageSet,
    val: ImageSet,
    views: Views,
    runtime: Runtime,
    *,
    k: int = 200,
    temperature: float = 0.1,
    precision: Precision | None = None,
    centres: CentreBatches = centre_batches,
    show_progress: bool = False,
) -> float:
    """Top-1 in percent by one k and temperature; see `knn`."""
    answer = knn(
        encoder, train, val, views, runtime, ks=[k], temperatures=[temperature], precision=precision,
        centres=centres, show_progress=show_progress,
    )  # fmt: skip
    return answer.top1.item()


@torch.no_grad()
def classify(
    bank: Features,
    queries: Features,
    labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float],
    *,
    show_progress: bool = False,
) -> KnnAnswer:
    """Every k and temperature from one search.

    Args:
        bank, queries: this rank's parts, features of length 1 on one device; the ranks' parts may differ in size.
        labels: int64 (N,), class of each sample id of the bank, on every rank.
        ks: numbers of neighbours, ascending; one larger than the bank lets the whole bank vote.

    Raises:
        UserError, on every rank: there is no bank or there are no queries.
    """
    device = bank.features.device
    labels = labels.to(device)
    sizes = torch.tensor([len(part.features) for part in (bank, queries)], device=device)
    skipped = torch.tensor([bank.skipped, queries.skipped], device=device)
    not_finite = _not_finite(bank.features) + _not_finite(queries.features)
    bank_total, total, *counted = sum_over_ranks(torch.cat([sizes, skipped, not_finite.view(1)])).tolist()
    for number, unread, what in ((bank_total, counted[0], "training"), (total, counted[1], "validation")):
        if not number:
            raise UserError(
                f"kNN has no {what} images: {f'none of {unread:,} can be read' if unread else 'none has a label'}; "
                "look at the set with `simsiam check-data`"
            )
    ks, samples = [min(k, bank_total) for k in ks], bank.samples.to(device)
    named = torch.stack([queries.labels, queries.samples], dim=1).to(device)
    hits = torch.zeros(2, len(ks), len(temperatures), dtype=torch.float64, device=device)
    predicted, ids = [], []
    piece = max(1, _QUERIES // world_size())
    with tqdm(
        total=total, desc="kNN search", unit=" queries", disable=None if show_progress else True, leave=False
    ) as bar:
        for start in range(0, int(gather_equal(sizes[1:]).max()), piece):
            some = slice(start, start + piece)
            truth, asked = gather_rows(named[some]).unbind(1)
            similarity, neighbours = nearest(bank.features, samples, gather_rows(queries.features[some]), ks[-1])
            first = torch.empty(len(ks), len(temperatures), len(truth), dtype=torch.int64, device=device)
            for row, column, scores in votes(similarity, labels[neighbours], num_classes, ks, temperatures):
                first[row, column] = scores.argmax(1)
                hits[:, row, column] += _hits(scores, truth)
            predicted.append(first)
            ids.append(asked)
            bar.update(len(truth))
    ids, order = torch.cat(ids).sort()
    return KnnAnswer(
        *(100 * hits / total).cpu(), torch.cat(predicted, 2)[..., order].cpu(), ids.cpu(), bank_total, *counted
    )


def nearest(bank: Tensor, samples: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar images of all ranks' banks, most similar first, equal ones by sample id.

    Args:
        bank: this rank's shard, float (n_r, D), rows of length 1.
        samples: int64 (n_r,), its sample ids, below 2^32.
        queries: float (Q, D), rows of length 1, the same on every rank.
        k: at most the size of all shards together.

    Returns:
        cosine similarities float64 (Q, k) and sample ids int64 (Q, k), the same on every rank.
    """
    # Values of float16 are exact in float32, and in TF32 too, where a user has allowed that.
    wide = torch.float32 if bank.is_cuda else torch.float64
    queries = queries.to(wide)
    best = samples.new_empty(len(queries), 0)
    for start in range(0, len(bank), _BANK):
        some = slice(start, start + _BANK)
        keys = _largest(_keys(queries @ bank[some].to(wide).T, samples[some]), k)
        best = _largest(torch.cat([best, keys], dim=1), k)
    if world_size() > 1:
        least = best.new_full((len(best), k - best.shape[1]), torch.iinfo(torch.int64).min)
        everyone = gather_equal(torch.cat([best, least], dim=1)).view(world_size(), len(best), k)
        best = _largest(everyone.transpose(0, 1).flatten(1), k)
    return (best >> 32).double() / _GRID, _IDS - (best & _IDS)


def votes(
    similarity: Tensor, labels: Tensor, num_classes: int, ks: Sequence[int], temperatures: Sequence[float]
) -> Iterator[tuple[int, int, Tensor]]:
    """Row of k, column of temperature, and scores float64 (Q, C), overwritten at the next step.

    The score of a class is the sum over its images among the first k of exp((cosine similarity - the largest) /
    temperature): what is taken off changes no order, and without it a small temperature overflows.

    Args:
        similarity: float64 (Q, k), descending, k the largest of `ks`.
        labels: int64 (Q, k).
        ks: ascending.
    """
    for column, temperature in enumerate(temperatures):
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        scores = weights.new_zeros(len(weights), num_classes)
        counted = 0
        for row, k in enumerate(ks):
            scores.scatter_add_(1, labels[:, counted:k], weights[:, counted:k])
            counted = k
            yield row, column, scores


def _keys(similarity: Tensor, samples: Tensor) -> Tensor:
    """int64 (Q, n), all different within a row: similarity in the upper half, and in the lower one ids that count down.

    So whatever finds the largest keys finds the neighbours in their order. Overwrites `similarity`.
    """
    whole = similarity.nan_to_num_(nan=-1.0).clamp_(-1, 1).mul_(_GRID).round_().long()
    return whole.bitwise_left_shift_(32).bitwise_or_(_IDS - samples)


def _largest(keys: Tensor, k: int) -> Tensor:
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def _hits(scores: Tensor, truth: Tensor) -> Tensor:
    """How many rows have their class first, and among the first five, of equal scores the lower number first: (2,)."""
    truth = truth.unsqueeze(1)
    own = scores.gather(1, truth)
    lower = torch.arange(scores.shape[1], device=scores.device) < truth
    before = ((scores > own) | ((scores == own) & lower)).sum(1, keepdim=True)
    # A class that nobody voted for is no answer, though fewer than five may have got a vote.
    return torch.stack([((before < first) & (own > 0)).sum() for first in (1, 5)])


def _not_finite(features: Tensor) -> Tensor:
    """How many rows have a value that is not finite."""
    # By their sums, for a mask would be as large as half of a float16 bank.
    return (~features.sum(1, dtype=torch.float32).isfinite()).sum()
