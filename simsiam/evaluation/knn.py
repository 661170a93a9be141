"""Weighted nearest-neighbour classification on frozen features (Wu et al. 2018, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import CentreBatches, centre_batches
from simsiam.distributed.collectives import gather_equal, gather_rows, world_size
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.features import extract_features
from simsiam.settings.tree import Views

_QUERIES = 1024  # at a time: bounds the similarity matrix to 1024 x this rank's bank


@torch.no_grad()
def knn_scores(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, num_classes: int, *, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Score of class c: sum over the k most similar bank features of class c of exp(cosine similarity / temperature).

    Args:
        bank: this rank's shard of the training features, float (n_r, D); the bank is all shards together.
        bank_labels: int64 (n_r,).
        queries: float (Q, D), the same on every rank.

    Returns:
        float (Q, num_classes), the same on every rank.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    bank_labels = bank_labels.to(bank.device)
    scores = queries.new_zeros(len(queries), num_classes)
    for start in range(0, len(queries), _QUERIES):
        part = queries[start : start + _QUERIES]
        similarity, labels = _nearest(part @ bank.T, bank_labels, k)
        if world_size() > 1:
            everyone = gather_equal(similarity).view(world_size(), len(part), k).transpose(0, 1).flatten(1)
            their_labels = gather_equal(labels).view(world_size(), len(part), k).transpose(0, 1).flatten(1)
            similarity, chosen = everyone.topk(k, dim=1)
            labels = their_labels.gather(1, chosen)
        # Padding has similarity -inf and so weight 0.
        scores[start : start + _QUERIES].scatter_add_(1, labels, (similarity / temperature).exp())
    return scores


def _nearest(similarity: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row and their labels, padded to k where the bank is smaller."""
    found = min(k, similarity.shape[1])
    values, columns = similarity.topk(found, dim=1)
    missing = k - found
    return F.pad(values, (0, missing), value=-torch.inf), F.pad(labels[columns], (0, missing))


def knn_accuracy(
    encoder: nn.Module,
    train: ImageSet,
    val: ImageSet,
    views: Views,
    runtime: Runtime,
    *,
    k: int = 200,
    temperature: float = 0.1,
    centres: CentreBatches = centre_batches,
    show_progress: bool = False,
) -> float:
    """Top-1 in percent of the labelled validation images among the labelled training images, on all ranks together."""
    show = show_progress and runtime.is_main
    bank = extract_features(encoder, train, views, runtime, centres=centres, describe="kNN bank" if show else "")
    mine = extract_features(encoder, val, views, runtime, centres=centres, describe="kNN queries" if show else "")
    queries, labels = gather_rows(mine.features), gather_rows(mine.labels.to(runtime.device))
    scores = knn_scores(bank.features, bank.labels, queries, len(train.classes), k=k, temperature=temperature)
    return 100.0 * (scores.argmax(1) == labels).double().mean().item()
