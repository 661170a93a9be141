"""The two heads of SimSiam: which layers have a bias and which a batch-norm (official `simsiam/builder.py`)."""

from torch import nn


def projector(in_dim: int, hidden_dim: int, out_dim: int, layers: int = 3) -> nn.Sequential:
    """Features (N, in_dim) to projections z (N, out_dim): `layers` of Linear without bias and batch-norm.

    ReLU stands between the layers, and the last batch-norm has no scale and shift. Three layers have the official
    indices 0 to 7; the paper's CIFAR setting has two (appendix D). The official code keeps a frozen bias in the last
    Linear, which that batch-norm cancels: here there is none.
    """
    if layers < 1:
        raise ValueError(f"a projector of {layers} layers")
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
        in_dim = hidden_dim
    return nn.Sequential(*parts, nn.Linear(in_dim, out_dim, bias=False), nn.BatchNorm1d(out_dim, affine=False))


def predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Projections z (N, dim) to predictions p (N, dim), through a bottleneck; the last Linear has a bias and no BN."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )
