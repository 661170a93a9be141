"""JPEGs that a GPU decodes and crops are those of a CPU, whatever their kind, and however late a stream takes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.crops import Crops
from simsiam.data.labelled import centre_batches
from simsiam.data.loaders import make_loader
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.settings.tree import Run, Views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KINDS = [
    {"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0}, {"progressive": True}, {"quality": 60}, {"mode": "L"},
    {"mode": "CMYK"}, {"restart_marker_blocks": 4},
]  # fmt: skip
SETTINGS = Run(batch_size=8, workers=2, loader="dali", views=Views(size=96))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """Waves of all kinds of JPEG, at sizes from 61 to 600 pixels."""
    folder = tmp_path_factory.mktemp("pictures") / "waves"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(32):
        height, width = rng.integers(61, 600, 2)
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / rng.uniform(4, 40) + y / rng.uniform(4, 40) + phase) for phase in range(3)]
        kind = dict(KINDS[number % len(KINDS)])
        image = Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))
        image.convert(kind.pop("mode", "RGB")).save(folder / f"{number:02}.jpg", **{"quality": 90, **kind})
    return FolderImages(folder.parent)


def load(images: FolderImages, loader: str, device: str) -> list[Crops]:
    settings = Run(**{**vars(SETTINGS), "loader": loader})
    steps = []
    for (crops,) in make_loader(images, Plan(len(images), 8, 0), settings, 2, device).steps(0, 8):
        if device == "cuda":
            torch.cuda._sleep(50_000_000)  # the next batch's copy comes late; its pixels must still be there
        steps.append(crops)
    return steps


def test_crops_are_those_of_torchvision_on_a_cpu(pictures: FolderImages) -> None:
    pytest.importorskip("nvidia.dali")
    for ours, other in zip(load(pictures, "dali", "cuda"), load(pictures, "torchvision", "cpu"), strict=True):
        assert ours.images.is_cuda
        gap = (ours.images.cpu().int() - other.images.int()).abs().float()
        assert gap.mean() < 1
        assert gap.max() < 24
        assert np.array_equal(ours.samples, other.samples)
        assert torch.equal(ours.labels, other.labels)


def test_centre_crops_are_those_of_torchvision_on_a_cpu(pictures: FolderImages) -> None:
    pytest.importorskip("nvidia.dali")
    from simsiam.data.loaders.dali_centre import dali_centre_batches

    samples, views = np.arange(len(pictures)), Views(resize=112, size=96)
    batches = dali_centre_batches(pictures, samples, views, 7, SETTINGS, torch.device("cuda", 0))
    for ours, other in zip(batches, centre_batches(pictures, samples, views, 7), strict=True):
        assert torch.equal(ours.samples, other.samples)
        assert (ours.images.cpu().int() - other.images.int()).abs().float().mean() < 1
