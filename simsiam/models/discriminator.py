"""A network that tells pairs of one image from pairs of two, with dropout that a resume and any ranks reproduce."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.distributed.collectives import rank, world_size


class Discriminator(nn.Module):
    """Linear, ReLU, dropout for each hidden layer, then a Linear to one logit.

    Which units drop out is a function of a seed and of an image's place in the global batch, so there is no random
    state to save, and ranks together drop what one rank drops.

    Args:
        in_dim: width of a pair. hidden: width of each hidden layer. dropout: probability that a unit is dropped.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int] = (512, 512, 256), dropout: float = 0.5) -> None:
        super().__init__()
        widths = (in_dim, *hidden, 1)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.dropout = dropout

    def forward(self, pairs: Tensor, seed: int) -> Tensor:
        """pairs (P, N, in_dim), P kinds for each of this rank's N images, to logits (P, N)."""
        generator = torch.Generator(pairs.device).manual_seed(seed)
        *hidden, last = self.layers
        for layer in hidden:
            pairs = F.relu(layer(pairs))
            if self.training and self.dropout:
                pairs = pairs * self._kept(pairs, generator)
        return last(pairs).squeeze(-1)

    def _kept(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """1 / (1 - dropout) where a unit stays, else 0, for this rank's x (P, N, C)."""
        kinds, n, width = x.shape
        everyone = torch.rand(kinds, world_size() * n, width, generator=generator, device=x.device)
        mine = everyone[:, rank() * n : (rank() + 1) * n]
        return (mine >= self.dropout).to(x.dtype) / (1 - self.dropout)
