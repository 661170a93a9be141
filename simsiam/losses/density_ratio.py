"""Telling pairs of one image from pairs of two: the logistic loss, whose best logit is a log density ratio."""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_ratio(real: Tensor, fake: Tensor) -> Tensor:
    """(BCE(real, 1) + BCE(fake, 0)) / 2 = (mean softplus(-real) + mean softplus(fake)) / 2, at least in float32.

    The loss of a GAN's discriminator (Goodfellow et al., arXiv 1406.2661, equation 1), halved and with its sign turned.
    Its minimum has the logit log p(a, b) / (p(a) p(b)) where real pairs are of p(a, b) and fake ones of p(a) p(b).

    Args:
        real, fake: logits (N,), of equal number.

    Returns:
        scalar; log 2 where all logits are 0.
    """
    real, fake = _at_least_float32(real), _at_least_float32(fake)
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def minus_probability(real: Tensor) -> Tensor:
    """-mean sigmoid(real) of logits (N,), at least in float32: what the encoder of `adv` minimises; from -1 to 0."""
    return -_at_least_float32(real).sigmoid().mean()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
