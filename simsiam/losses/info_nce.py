"""InfoNCE against a queue of negatives, the loss of MoCo."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """-log exp(q.k / t) / (exp(q.k / t) + sum_n exp(q.n / t)), mean over queries, in float32 (MoCo, arXiv 1911.05722).

    Equation 1 there: q is a query, k its key, n runs over the queue.

    Args:
        queries: (N, D), of any length: they are scaled to 1 here.
        keys: (N, D), of length 1, without gradient; key n belongs to query n.
        queue: (K, D), of length 1, without gradient.
        temperature: t.

    Returns:
        scalar; log(K + 1) where all similarities are equal.
    """
    q = F.normalize(queries.to(torch.promote_types(queries.dtype, torch.float32)), dim=1)
    with torch.autocast(q.device.type, enabled=False):  # a 16-bit product would round q.n / t to a part in a hundred
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
