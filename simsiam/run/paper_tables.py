"""The ablations of the SimSiam paper (arXiv 2011.10566), row by row: what each changes, and the top-1 it prints."""

from collections.abc import Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        name: what sets the row apart; also its folder's name.
        paper: linear top-1 on ImageNet after 100 epochs, percent, as printed; empty where the paper has none.
        changes: settings of pretrain.py that differ from the base recipe.
        note: what the paper says of it.
    """

    name: str
    paper: str
    changes: Mapping[str, object]
    note: str = ""


class Scaled(NamedTuple):
    """A number of the paper's: elsewhere the same share of what the base recipe has at the key `of`."""

    share: float
    of: str


_BATCH_TOP1 = ("66.1", "67.3", "68.1", "68.1", "68.0", "67.9", "64.0")
_DIM_TOP1 = {256: "65.3", 512: "67.2", 1024: "67.5", 2048: "68.1"}
_WARM_UP = {"optim.warmup_epochs": Scaled(10 / 100, "epochs")}


def _dims(dim: int) -> dict[str, object]:
    return {"method.dim": Scaled(dim / 2048, "method.dim"), "method.predictor_hidden": Scaled(dim / 8192, "method.dim")}


def _batch(size: int) -> dict[str, object]:
    return {"batch_size": Scaled(size / 512, "batch_size"), **(_WARM_UP if size >= 1024 else {})}


TABLES: dict[str, tuple[str, tuple[Row, ...]]] = {
    "stop-gradient": (
        "with and without stop-gradient (figure 2)",
        (
            Row("with", "67.7", {"optim.predictor_lr": "cosine"}, "+-0.1 over 5 trials"),
            Row("without", "0.1", {"optim.predictor_lr": "cosine", "method.stop_gradient": "false"}, "collapses"),
        ),
    ),
    "predictor": (
        "predictor (table 1)",
        (
            Row("cosine-rate", "67.7", {"optim.predictor_lr": "cosine"}),
            Row("none", "0.1", {"method.predictor": "none"}, "collapses"),
            Row("fixed-random", "1.5", {"method.predictor": "fixed"}, "the loss stays high; no collapse"),
            Row("constant-rate", "68.1", {}),
        ),
    ),
    "batch": (
        "batch size (table 2)",
        tuple(
            Row(str(size), top1, _batch(size), "warm-up of 10 epochs" if size >= 1024 else "")
            for size, top1 in zip((64, 128, 256, 512, 1024, 2048, 4096), _BATCH_TOP1)
        ),
    ),
    "batchnorm": (
        "batch-norm in the heads (table 3)",
        (
            Row("none", "34.6", {"method.batchnorm": "none", **_WARM_UP}, "warm-up of 10 epochs"),
            Row("hidden", "67.4", {"method.batchnorm": "hidden"}),
            Row("output", "68.1", {"method.batchnorm": "output", "method.output_affine": "true"}, "the default"),
            Row("output-without-affine", "68.2", {"method.batchnorm": "output"}, "the official code's"),
            Row("both", "", {"method.batchnorm": "both"}, "unstable: the loss oscillates"),
        ),
    ),
    "similarity": (
        "similarity (section 4.5)",
        (Row("cosine", "68.1", {}), Row("cross-entropy", "63.2", {"method.similarity": "cross_entropy"})),
    ),
    "symmetry": (
        "symmetric loss (section 4.6)",
        (
            Row("symmetric", "68.1", {}),
            Row("asymmetric", "64.8", {"method.symmetry": "asymmetric"}),
            Row("asymmetric-2x", "67.3", {"method.symmetry": "asymmetric_2x"}),
        ),
    ),
    "alternation": (
        "multi-step alternation (section 5.2)",
        tuple(
            Row(name, top1, {"method.name": "simsiam-alternating", "method.alternate_steps": steps})
            for name, steps, top1 in (
                ("1-step", 1, "68.1"), ("10-step", 10, "68.7"), ("100-step", 100, "68.9"), ("1-epoch", "epoch", "67.0"),
            )
        ),
    ),
    "moving-average": (
        "moving-average targets without predictor (section 5.2)",
        (
            Row("none", "0.1", {"method.predictor": "none"}, "collapses"),
            Row("moving-average", "55.0", {"method.name": "simsiam-moving-average"}, "m = 0.8"),
        ),
    ),
    "dim": (
        "output dimension (appendix B), the predictor's hidden layer a quarter of it",
        tuple(Row(str(dim), top1, _dims(dim)) for dim, top1 in _DIM_TOP1.items()),
    ),
}  # fmt: skip
"""Name -> title and rows."""
