"""DALI's crops are torchvision's within a rounding, whatever the files are."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from simsiam.data.augment import Augment
from simsiam.data.crops import Crops
from simsiam.data.image_set import BadImage
from simsiam.data.labelled import centre_batches
from simsiam.data.loaders import dali, make_loader
from simsiam.data.loaders.dali_centre import dali_centre_batches
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.settings.tree import Pretrain, Run, SmallViews, Views
from simsiam.settings.view_recipes import view_recipes

SETTINGS = Run(batch_size=8, workers=1, loader="dali", views=Views(size=96))
VARIED = Pretrain(
    batch_size=8,
    workers=1,
    loader="dali",
    views=Views(size=96),
    branches=[{"blur": 1.0}, {"scale": [0.05, 0.1], "solarize": 1.0}],
    small_views=SmallViews(count=3, size=40),
    views_schedule=[{"until": 1, "scale": [0.9, 1.0], "branches": [{}, {"gray": 1.0}]}],
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """Real photographs at several sizes, one CMYK, one gray, one turned, one cut short, one PNG called JPEG."""
    root = tmp_path_factory.mktemp("photographs")
    for label, pixels in enumerate(load_sample_images().images):
        folder = root / f"class{label}"
        folder.mkdir()
        for number, width in enumerate((640, 480, 200, 90, 64, 333)):
            image = Image.fromarray(pixels).resize((width, width * 2 // 3 + number))
            image.save(folder / f"{number}.jpg", quality=90, subsampling=2 * (number % 2))
    Image.open(root / "class0/0.jpg").convert("CMYK").save(root / "class0/6.jpg")
    Image.open(root / "class0/1.jpg").convert("L").save(root / "class0/7.jpg")
    Image.open(root / "class1/1.jpg").save(root / "class1/8.jpg", format="PNG")
    (root / "class1/9.jpg").write_bytes((root / "class1/0.jpg").read_bytes()[:5000])
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side, for whoever looks at it
    Image.open(root / "class0/3.jpg").save(root / "class0/10.jpg", exif=turned)
    return FolderImages(root)


def load(images: FolderImages, settings: Run, start: int, stop: int, rank: int = 0, world: int = 1) -> list[Crops]:
    plan = Plan(len(images), settings.batch_size, settings.seed, rank, world)
    steps = make_loader(images, plan, settings, 2, "cpu").steps(start, stop)
    return [crops for step in steps for crops in step]


@pytest.mark.parametrize("settings", [SETTINGS, VARIED], ids=["alike", "varied"])
def test_crops_and_views_are_those_of_torchvision(photographs: FolderImages, settings: Run) -> None:
    augment = Augment(settings.views, 0, partial(view_recipes, settings, num_views=2))
    theirs = load(photographs, replace(settings, loader="torchvision"), 0, 6)
    for ours, other in zip(load(photographs, settings, 0, 6), theirs, strict=True):
        assert (ours.small is None) == (other.small is None) == (settings is SETTINGS)
        for mine, expected in zip((ours.images, ours.small), (other.images, other.small)):
            gap = (mine.int() - expected.int()).abs().float() if expected is not None else torch.zeros(1)
            assert gap.mean() < 0.5
            assert gap.max() < 8
        assert np.array_equal(ours.samples, other.samples)
        assert torch.equal(ours.labels, other.labels)
        assert (ours.epoch, sorted(ours.replaced)) == (other.epoch, sorted(other.replaced))
        for views, expected in zip(augment.inputs(ours), augment.inputs(other), strict=True):
            assert ((views - expected) * augment.std).abs().mean() * 255 < 1


@pytest.mark.parametrize("world", [2, 4])
def test_steps_from_the_middle_and_ranks_are_parts_of_the_whole(photographs: FolderImages, world: int) -> None:
    whole = load(photographs, VARIED, 0, 5)
    assert [crops.epoch for crops in whole] == [0, 0, 1, 1, 2]
    for ours, other in zip(load(photographs, VARIED, 1, 5), whole[1:], strict=True):
        assert torch.equal(ours.images, other.images)
        assert torch.equal(ours.small, other.small)
        assert np.array_equal(ours.samples, other.samples)
    ranks = [load(photographs, VARIED, 1, 4, rank, world) for rank in range(world)]
    for *parts, other in zip(*ranks, whole[1:4], strict=True):
        assert torch.equal(torch.cat([part.images for part in parts], 1), other.images)
        assert torch.equal(torch.cat([part.small for part in parts], 1), other.small)
        assert torch.equal(torch.cat([part.labels for part in parts]), other.labels)
        assert np.array_equal(np.concatenate([part.samples for part in parts]), other.samples)


def test_a_truncated_file_is_replaced_and_listed(photographs: FolderImages) -> None:
    crops = load(photographs, SETTINGS, 0, len(photographs) // 8 * 2)
    assert {photographs.name(sample) for c in crops for sample, _ in c.replaced} == {"class1/9.jpg"}


def test_centre_crops_are_those_of_torchvision_and_the_unreadable_are_left_out(photographs: FolderImages) -> None:
    samples = np.arange(len(photographs))
    for views in (Views(resize=112, size=96), Views(resize=96, size=96), Views(resize=97, size=96)):
        ours = list(dali_centre_batches(photographs, samples, views, 7, SETTINGS, torch.device("cpu")))
        theirs = list(centre_batches(photographs, samples, views, 7))
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.samples, other.samples)
            assert torch.equal(mine.labels, other.labels)
            assert mine.skipped == other.skipped
            gap = (mine.images.int() - other.images.int()).abs().float()
            assert gap.max() <= 2
            assert gap.mean() < 0.5
        assert sum(len(batch.skipped) for batch in ours) == 1


def without_tables(jpeg: bytes) -> bytes:
    """A JPEG that begins well, and whose pixels nobody can tell: DALI names it where it fails on it."""
    start = jpeg.index(b"\xff\xdb")
    while jpeg[start : start + 2] == b"\xff\xdb":
        jpeg = jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4]) :]
    return jpeg


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_batch_that_dali_fails_on_is_decoded_here(
    photographs: FolderImages, monkeypatch: pytest.MonkeyPatch, readable: bool, named: bool
) -> None:
    expected = load(photographs, SETTINGS, 0, 4)
    last = len(photographs) - 1  # the one cut short, for which the first stands in
    spoilt = next(sample for sample in expected[1].samples.tolist() if sample not in (0, last))
    data = without_tables(photographs.read_bytes(0)) if named else b"\xff\xd8 no image \xff\xd9"
    refusals: set[int] = set()

    def fetch_what_dali_refuses(images: FolderImages, sample: int, refused: set[int]) -> dali.Fetched:
        nonlocal refusals
        refusals = refused
        if sample != spoilt:
            return fetch_one(images, sample, refused)
        if sample not in refused:
            return dali.Fetched(sample, data, 50, 50)
        if not readable:
            raise BadImage("neither can we")
        pixels = images.read(sample)
        return dali.Fetched(sample, b"", *pixels.shape[1:], pixels=pixels)

    fetch_one = dali.fetch_one
    monkeypatch.setattr(dali, "fetch_one", fetch_what_dali_refuses)
    for ours, other in zip(load(photographs, SETTINGS, 0, 4), expected, strict=True):
        assert np.array_equal(ours.samples, other.samples)
        same = [row for row, sample in enumerate(ours.samples.tolist()) if readable or sample != spoilt]
        assert (ours.images.int() - other.images.int())[:, same].abs().max() <= 2
        told = {sample for sample, _ in ours.replaced} - {sample for sample, _ in other.replaced}
        assert told == (set() if readable or spoilt not in ours.samples else {spoilt})
    assert refusals == {spoilt} if named else len(refusals) >= 8
