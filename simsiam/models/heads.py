"""Heads of the methods: which layers have a bias and which a batch-norm."""

from torch import nn

from simsiam.errors import UserError


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    layers: int = 2,
    *,
    hidden_norm: bool = True,
    output_norm: bool = False,
    output_affine: bool = True,
    bias: bool | None = None,
) -> nn.Sequential:
    """(N, in_dim) to (N, out_dim): `layers` of Linear with ReLU between them.

    Args:
        hidden_norm: a batch-norm before each ReLU. output_norm: one behind the last Linear.
        output_affine: whether that last one has scale and shift.
        bias: of every Linear; None gives one to those that no batch-norm follows, which would cancel it.

    In the papers' code: SimCLR has batch-norm everywhere, the last without shift (2 or 3 layers), MoCo v2 none; BYOL
    and SwAV have it behind hidden layers alone, BYOL without a bias at the output (`bias=False`).
    """
    if layers < 1 or min(in_dim, hidden_dim, out_dim) < 1:
        raise UserError(
            f"A head of {layers} layers from {in_dim} over {hidden_dim} to {out_dim} channels is none; take 1 or more "
            "(method.dim, projector_layers, projector_hidden, predictor_hidden)"
        )
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts.append(nn.Linear(in_dim, hidden_dim, bias=not hidden_norm if bias is None else bias))
        parts += [nn.BatchNorm1d(hidden_dim)] * hidden_norm + [nn.ReLU(inplace=True)]
        in_dim = hidden_dim
    parts.append(nn.Linear(in_dim, out_dim, bias=not output_norm if bias is None else bias))
    return nn.Sequential(*parts, *[nn.BatchNorm1d(out_dim, affine=output_affine)] * output_norm)


def projector(
    in_dim: int, hidden_dim: int, out_dim: int, layers: int = 3, output_affine: bool = False
) -> nn.Sequential:
    """SimSiam's: features (N, in_dim) to projections z (N, out_dim): `layers` of Linear without bias and batch-norm.

    ReLU stands between the layers, and the last batch-norm has scale and shift where `output_affine` says so. Three
    layers have the official indices 0 to 7; the paper's CIFAR setting has two (appendix D). The official code keeps a
    frozen bias in the last Linear, which that batch-norm cancels: here there is none.
    """
    return mlp(in_dim, hidden_dim, out_dim, layers, output_norm=True, output_affine=output_affine)


def predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """SimSiam's: z (N, dim) to predictions p (N, dim), through a bottleneck; the last Linear has a bias and no BN."""
    return mlp(dim, hidden_dim, dim)
