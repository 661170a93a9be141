"""A detector's file builds the same detector again, and nothing else does."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from simsiam.detection.model import TrainedDetector, detector_arguments
from simsiam.detection.rcnn import build_detector
from simsiam.detection.trained import read_detector, write_detector
from simsiam.errors import UserError
from simsiam.models.encoders import build_encoder
from tests.detection.conftest import settings


@pytest.mark.parametrize(("head", "anchors"), [("c4", (16, 32)), ("fpn", (8, 16, 32, 64, 128))])
def test_what_was_written_finds_the_same(tmp_path: Path, head: str, anchors: tuple) -> None:
    run = settings(tmp_path, head=head, mask=True, mean=(0.4, 0.5, 0.6))
    arguments = {**detector_arguments(run), "anchor_sizes": anchors}
    torch.manual_seed(0)
    rcnn = TrainedDetector(build_detector(build_encoder("resnet18"), 3, **arguments)).rcnn
    classes, file = ("cat", "dog", "été"), tmp_path / "detector.safetensors"
    write_detector(rcnn, file, encoder="resnet18", classes=classes, arguments=arguments, about={"AP": 1.5})
    read = read_detector(file)
    assert read.classes == classes
    assert read.about == {"AP": 1.5, "encoder": "resnet18"}
    image = torch.rand(3, 60, 80)
    with torch.no_grad():
        (one,), (two,) = rcnn.eval()([image]), read.rcnn([image])
    assert len(one["scores"])
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [file.name for file in tmp_path.iterdir()] == ["detector.safetensors"]


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, encoder, {"encoder": "resnet18"})
    for file in (encoder, tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match="is no detector of transfer/detect.py"):
            read_detector(file)
