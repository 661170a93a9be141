"""What others report, to stand beside our own results and never among them."""

from typing import NamedTuple


class Published(NamedTuple):
    """A number from a paper or a repository.

    Attributes:
        protocol: knn, linear, 1pct or 10pct, as in the ledger.
        epochs, batch: of pretraining; None where the source at hand does not say.
        top1, top5: percent, as printed; empty where there is none.
        setting: what sets the row apart.
        source: paper or repository.
    """

    protocol: str
    method: str
    encoder: str
    epochs: int | None
    batch: int | None
    dataset: str
    top1: str
    top5: str
    setting: str
    source: str


_SIMSIAM = "SimSiam, arXiv:2011.10566"
_TABLE_4 = f"{_SIMSIAM}, table 4"
_OFFICIAL = "github.com/facebookresearch/simsiam"
_ZOO = "github.com/open-mmlab/mmselfsup, configs/selfsup/simsiam/README.md"
_OLD_ZOO = "github.com/open-mmlab/mmselfsup, branch openselfsup, docs/MODEL_ZOO.md"
_SOLO = "github.com/vturrisi/solo-learn, README.md"
_HUA = "github.com/PatrickHua/SimSiam"
_BYOL = "BYOL, arXiv:2006.07733, table 2; also in Barlow Twins and VICReg"
_TWINS = "Barlow Twins, arXiv:2103.03230, table 2; VICReg, arXiv:2105.04906, table 1"
_VICREG = "VICReg, arXiv:2105.04906, table 1"


def published(protocols: set[str]) -> list[Published]:
    """The rows of some protocols."""
    return [row for row in PUBLISHED if row.protocol in protocols]


def _knn(epochs: int, cells: dict[int, str]) -> list[Published]:
    return [
        Published("knn", "SimSiam", "resnet50", epochs, 256, "ImageNet", top1, "", f"k={k},T=0.07", _ZOO)
        for k, top1 in cells.items()
    ]


def _imagenet(method: str, epochs: int, batch: int, top1: str, setting: str, source: str) -> Published:
    return Published("linear", method, "resnet50", epochs, batch, "ImageNet", top1, "", setting, source)


def _by_epochs(method: str, batch: int, tops: str) -> list[Published]:
    theirs = "" if method == "SimSiam" else "reproduced by the SimSiam authors"
    return [
        _imagenet(method, epochs, batch, top1, theirs, _TABLE_4)
        for epochs, top1 in zip((100, 200, 400, 800), tops.split(), strict=True)
    ]


def _cifar(
    protocol: str, method: str, epochs: int, batch: int, top1: str, top5: str, setting: str, source: str
) -> Published:
    return Published(protocol, method, "cifar_resnet18", epochs, batch, "CIFAR-10", top1, top5, setting, source)


def _few_labels(method: str, tops: str, source: str, epochs: int | None = None, batch: int | None = None) -> list:
    """`tops`: top-1 at 1% and 10%, top-5 at 1% and 10%; `-` where nothing is published."""
    one, ten, one5, ten5 = tops.replace("-", "").split(" ")
    return [
        Published(protocol, method, "resnet50", epochs, batch, "ImageNet", top1, top5, "", source)
        for protocol, top1, top5 in (("1pct", one, one5), ("10pct", ten, ten5))
    ]


PUBLISHED: tuple[Published, ...] = (
    *_knn(100, {10: "57.4", 20: "57.6", 100: "55.8", 200: "54.2"}),
    *_knn(200, {10: "60.2", 20: "60.4", 100: "58.8", 200: "57.4"}),
    _cifar("knn", "SimSiam", 800, 512, "90.3", "", "k=200,T=0.1", _HUA),
    _imagenet("SimSiam", 100, 512, "68.1", "predictor rate constant", f"{_SIMSIAM}, tables 1c, 2, 3c; {_OFFICIAL}"),
    _imagenet("SimSiam", 100, 256, "68.3", "released checkpoint", f"{_OFFICIAL}, README.md"),
    _imagenet("SimSiam", 100, 512, "67.7", "predictor rate cosine, +-0.1 (5 trials)", f"{_SIMSIAM}, figure 2, table 1"),
    _imagenet("SimSiam", 200, 256, "69.8", "released checkpoint", f"{_OFFICIAL}, issue 18"),
    _imagenet("SimSiam without stop-gradient", 100, 512, "0.1", "collapse", f"{_SIMSIAM}, figure 2"),
    _imagenet("SimSiam without predictor", 100, 512, "0.1", "collapse", f"{_SIMSIAM}, table 1a"),
    *_by_epochs("SimSiam", 256, "68.1 70.0 70.8 71.3"),
    *_by_epochs("SimCLR", 4096, "66.5 68.3 69.8 70.4"),
    *_by_epochs("MoCo v2", 256, "67.4 69.9 71.0 72.2"),
    *_by_epochs("BYOL", 4096, "66.5 70.6 73.2 74.3"),
    *_by_epochs("SwAV", 4096, "66.5 69.1 70.7 71.8"),
    _cifar("linear", "SimSiam", 800, 512, "91.8", "", "", f"{_SIMSIAM}, appendix D"),
    _cifar("linear", "SimSiam", 800, 512, "91.94", "", "", "github.com/f2010126/SimSiam-91.9-top1-acc-on-CIFAR10"),
    _cifar("linear", "SimSiam", 800, 512, "90.83", "", "", _HUA),
    _cifar("linear", "SimCLR", 800, 512, "91.1", "", "", f"{_SIMSIAM}, appendix D"),
    _cifar("linear", "SimSiam", 1000, 256, "90.51", "99.72", "", _SOLO),
    Published("linear", "SimSiam", "cifar_resnet18", 1000, 256, "CIFAR-100", "66.04", "89.62", "", _SOLO),
    Published("linear", "SimSiam", "resnet18", 400, None, "ImageNet-100", "74.54", "", "trained alongside", _SOLO),
    Published("linear", "SimSiam", "resnet18", 400, None, "ImageNet-100", "78.72", "", "trained afterwards", _SOLO),
    *_few_labels("supervised only", "25.4 56.4 48.4 80.4", _BYOL),
    *_few_labels("PIRL", "- - 57.2 83.8", _BYOL),
    *_few_labels("SimCLR", "48.3 65.6 75.5 87.8", _BYOL),
    *_few_labels("BYOL", "53.2 68.8 78.4 89.0", _BYOL),
    *_few_labels("SwAV (multi-crop)", "53.9 70.2 78.5 89.9", _TWINS),
    *_few_labels("Barlow Twins", "55.0 69.7 79.2 89.3", _TWINS),
    *_few_labels("VICReg", "54.8 69.5 79.4 89.5", _VICREG),
    *_few_labels("OBoW", "- - 82.9 90.7", _VICREG),
    *_few_labels("SimCLRv2", "57.9 68.4 - -", "github.com/google-research/simclr, README.md"),
    *_few_labels("MoCo v2", "39.07 61.80 68.31 85.11", _OLD_ZOO, epochs=200),
    *_few_labels("SimCLR", "36.09 58.46 64.50 82.60", _OLD_ZOO, epochs=200, batch=256),
)  # fmt: skip
"""No paper reports SimSiam with 1% or 10% of the labels."""
