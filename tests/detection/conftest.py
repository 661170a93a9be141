"""Small sets of scenes in both layouts, and the settings that make a detector of them in a second."""

from pathlib import Path

import pytest

from simsiam.data.sources.scenes import make_scenes
from simsiam.settings.detect import Detect, Sizes

SMALL = Sizes(
    train=(48, 64), test=64, longest=96, anchors=(16, 32, 48), anchor_batch=16, region_batch=8, region_side=7,
    pre_nms=(100, 50), post_nms=(30, 10),
)  # fmt: skip


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "voc"
    make_scenes(root, "voc", train=8, val=6)
    return root


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco") / "coco"
    make_scenes(root, "coco", train=8, val=6)
    return root


def settings(root: Path, **others: object) -> Detect:
    """A run on one of them; COCO's where `mask` or `coco_...` asks for it."""
    given = {
        "data": str(root), "pretrained": "random", "encoder": "resnet18", "batch_size": 4, "workers": 0, "sizes": SMALL,
        "iterations": 4, "precise_bn": 2, "hide_progress": True,
    }  # fmt: skip
    return Detect(**{**given, **others})
