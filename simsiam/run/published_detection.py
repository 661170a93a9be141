"""What others report of detection with a pretrained ResNet-50, to stand beside our own results and never among them."""

from typing import NamedTuple


class Task(NamedTuple):
    """What was fine-tuned and tested: `layout` is voc or coco, as our names of sets begin, `head` c4 or fpn."""

    layout: str
    trained: str
    tested: str
    head: str


class PublishedDetection(NamedTuple):
    """A row of a paper's or a repository's table.

    Attributes:
        epochs: of pretraining on ImageNet; None where there was none, or the source does not say.
        box, mask: AP50, AP and AP75 in percent, as printed; empty where there is none.
        setting: what sets the row apart.
        source: paper or repository.
    """

    method: str
    epochs: int | None
    task: Task
    box: tuple[str, ...]
    mask: tuple[str, ...]
    setting: str
    source: str


_TABLE_5 = "SimSiam, arXiv:2011.10566, table 5"
_MOCO = "github.com/facebookresearch/moco, detection/README.md"
_ZOO = "github.com/open-mmlab/mmselfsup, configs/selfsup/simsiam/README.md"

_VOC07 = Task("voc", "VOC 2007 trainval", "VOC 2007 test", "c4")
# So says the paper. MoCo, whose code it ran, says 2012 trainval, and has the same numbers for supervised pretraining.
_VOC0712_PAPER = _VOC07._replace(trained="VOC 2007 trainval + 2012 train")
_VOC0712 = _VOC07._replace(trained="VOC 2007 + 2012 trainval")
_COCO = Task("coco", "COCO 2017 train", "COCO 2017 val", "c4")
_COCO_FPN = _COCO._replace(head="fpn")


def _row(
    method: str, epochs: int | None, task: Task, box: str, mask: str, setting: str, source: str
) -> PublishedDetection:
    """`box`, `mask`: AP50 alone, or with AP and AP75."""
    figures = [tuple((*printed.split(), "", "", "")[:3]) for printed in (box, mask)]
    return PublishedDetection(method, epochs, task, *figures, setting, source)


def _table_5(method: str, epochs: int | None, voc07: str, voc0712: str, box: str, mask: str) -> list:
    theirs = "" if epochs is None or "SimSiam" in method else ", reproduced by the SimSiam authors"
    return [
        _row(method, epochs, _VOC07, voc07, "", f"5 trials{theirs}", _TABLE_5),
        _row(method, epochs, _VOC0712_PAPER, voc0712, "", f"5 trials{theirs}", _TABLE_5),
        _row(method, epochs, _COCO, box, mask, f"1x schedule{theirs}", _TABLE_5),
    ]


def _moco(method: str, epochs: int | None, box: str) -> PublishedDetection:
    return _row(method, epochs, _VOC0712, box, "", "5 trials, 24k iterations", _MOCO)


def _zoo(epochs: int, voc: str, box: str, mask: str) -> list:
    return [
        _row("SimSiam", epochs, _VOC0712, voc, "", "mmdetection, 24k iterations", _ZOO),
        _row("SimSiam", epochs, _COCO_FPN, box, mask, "mmdetection, 1x schedule", _ZOO),
    ]


PUBLISHED_DETECTION: tuple[PublishedDetection, ...] = (
    *_table_5("random weights", None, "35.9 16.8 13.0", "60.2 33.8 33.1", "44.0 26.4 27.8", "46.9 29.3 30.8"),
    *_table_5("supervised", None, "74.4 42.4 42.7", "81.3 53.5 58.8", "58.2 38.2 41.2", "54.7 33.3 35.2"),
    *_table_5("SimCLR", 200, "75.9 46.8 50.1", "81.8 55.5 61.4", "57.7 37.9 40.9", "54.6 33.3 35.3"),
    *_table_5("MoCo v2", 200, "77.1 48.5 52.5", "82.3 57.0 63.3", "58.8 39.2 42.5", "55.5 34.3 36.6"),
    *_table_5("BYOL", 200, "77.1 47.0 49.9", "81.4 55.3 61.1", "57.8 37.9 40.9", "54.3 33.2 35.0"),
    *_table_5("SwAV", 200, "75.5 46.5 49.6", "81.5 55.4 61.4", "57.6 37.6 40.3", "54.2 33.1 35.1"),
    *_table_5("SimSiam, base", 200, "75.5 47.0 50.2", "82.0 56.4 62.8", "57.5 37.9 40.9", "54.2 33.2 35.2"),
    *_table_5("SimSiam, optimal", 200, "77.3 48.5 52.5", "82.4 57.0 63.7", "59.3 39.2 42.1", "56.0 34.4 36.7"),
    _moco("supervised", None, "81.3 53.5 58.8"),
    _moco("MoCo v1", 200, "81.5 55.9 62.6"),
    _moco("MoCo v2", 200, "82.4 57.0 63.6"),
    _moco("MoCo v2", 800, "82.5 57.4 64.0"),
    *_zoo(100, "79.80", "57.6 38.6 42.3", "54.8 34.6 36.9"),
    *_zoo(200, "79.85", "58.0 38.8 42.3", "55.3 34.9 37.6"),
)
"""On COCO the paper, too, prints a higher mask AP than box AP for random weights."""
