"""Loaders differ in how fast they get there, never in what comes out; and what the protocols test on."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import CenterCrop, Compose, Resize
from torchvision.transforms.v2 import functional as TF

from simsiam.data.augment import Augment
from simsiam.data.crops import Crops
from simsiam.data.image_set import BadImage
from simsiam.data.labelled import Centred, centre_batches, centre_crop
from simsiam.data.loaders import choose_images, make_loader
from simsiam.data.loaders.resident import crop_batch
from simsiam.data.loaders.torchvision import crop
from simsiam.data.plan import Plan
from simsiam.data.resident import fits_in_memory, make_resident
from simsiam.data.sources.folder import FolderImages
from simsiam.data.views import crop_boxes
from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain, Run, SmallViews, Views
from simsiam.settings.view_recipes import view_recipes

CPU = torch.device("cpu")
SETTINGS = Pretrain(batch_size=12, seed=3, workers=0, loader="torchvision", views=Views(size=24))
# Views that differ in all that they can differ in, changing at epochs 1 and 2.
VARIED = replace(
    SETTINGS,
    branches=[{"scale": [0.5, 0.6], "blur": 1.0}, {"solarize": 0.5, "ratio": [1.0, 1.0]}],
    small_views=SmallViews(count=3, size=10, scale=(0.1, 0.2)),
    views_schedule=[{"until": 1, "jitter": 0.0}, {"until": 2, "scale": [0.9, 1.0], "branches": [{}, {"gray": 1.0}]}],
)
BAD = {4, 5, 20, 29}  # two in a row, one alone, and the last, whose stand-in is the first


def write_folder(root: Path, count: int = 30, size: tuple[int, int] = (32, 32), bad: set[int] | None = None) -> Path:
    """PNGs of noise, ten a class; the bad ones are a truncated JPEG or a text file."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    for sample in range(count):
        path = root / f"class{sample // 10}" / f"{sample:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[sample])
        image.save(path)
        if sample in (bad or ()) and sample % 2:
            path.write_text("This is not an image.")
        elif sample in (bad or ()):
            image.save(path, format="JPEG", quality=95)
            path.write_bytes(path.read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return FolderImages(write_folder(tmp_path_factory.mktemp("good")))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return FolderImages(write_folder(tmp_path_factory.mktemp("damaged"), bad=BAD))


def load(
    images: FolderImages, settings: Run, start: int = 0, stop: int = 5, *, rank: int = 0, world: int = 1, views: int = 2
) -> list[list[Crops]]:
    chosen, _ = choose_images(images, settings, show_progress=False)
    plan = Plan(len(images), settings.batch_size, settings.seed, rank, world)
    return list(make_loader(chosen, plan, settings, views, CPU).steps(start, stop))


def flat(steps: list[list[Crops]]) -> Iterator[Crops]:
    return (crops for step in steps for crops in step)


def all_crops(crops: Crops) -> list[Tensor]:
    """uint8 (N, S, S, 3) of each view, small ones last."""
    return [*crops.images, *(crops.small if crops.small is not None else ())]


def assert_same(a: list[list[Crops]], b: list[list[Crops]]) -> None:
    assert [len(step) for step in a] == [len(step) for step in b]
    for ours, theirs in zip(flat(a), flat(b), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert (ours.small is None and theirs.small is None) or torch.equal(ours.small, theirs.small)
        assert torch.equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.samples, theirs.samples)
        assert ours.epoch == theirs.epoch
        assert sorted(ours.replaced) == sorted(theirs.replaced)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resident_and_torchvision_loaders_agree_to_the_bit(good: FolderImages, workers: int) -> None:
    resident = load(good, replace(SETTINGS, loader="resident"))
    assert_same(load(good, replace(SETTINGS, workers=workers)), resident)
    first = resident[0][0]
    assert first.images.shape == (2, 12, 24, 24, 3)
    assert first.images.dtype == torch.uint8
    assert first.labels.dtype == torch.int64
    assert not first.replaced


@pytest.mark.parametrize("views", [Views(size=32), Views(size=7, scale=(0.02, 0.1)), Views(size=48), Views(size=1)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_loaders_agree_for_any_side_and_number_of_views(good: FolderImages, views: Views, count: int) -> None:
    settings = replace(SETTINGS, views=views, batch_size=15)
    one = load(good, replace(settings, loader="resident"), 0, 2, views=count)
    assert_same(load(good, settings, 0, 2, views=count), one)
    assert one[0][0].images.shape == (count, 15, views.size, views.size, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (28, 44), (128, 3), (1, 1)])
def test_crops_of_whole_batches_are_those_of_torchvision_to_the_bit(height: int, width: int) -> None:
    n, sides = 24, (1, 8, 24, 32, 50)
    images = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 255, 0
    boxes = crop_boxes(Views(scale=(0.01, 1.0)), 0, 0, np.arange(n), 0, np.full(n, height), np.full(n, width))
    for side in sides:
        expected = torch.stack(
            [TF.resized_crop(x, *box, size=[side, side], antialias=True) for x, box in zip(images, boxes.tolist())]
        ).permute(0, 2, 3, 1)
        assert torch.equal(crop_batch(images.float(), boxes, side), expected)
        assert torch.equal(torch.stack([crop(x, box, side) for x, box in zip(images, boxes)]), expected)


@pytest.mark.parametrize("settings", [SETTINGS, VARIED], ids=["alike", "varied"])
@pytest.mark.parametrize("loader", ["torchvision", "resident"])
def test_a_crop_is_the_box_of_its_sample_and_of_its_views_recipe(
    good: FolderImages, loader: str, settings: Pretrain
) -> None:
    for crops in flat(load(good, replace(settings, loader=loader))):
        recipes = view_recipes(settings, crops.epoch, 2)
        assert len(recipes) == 2 + settings.small_views.count
        for view, (recipe, made) in enumerate(zip(recipes, all_crops(crops), strict=True)):
            for row, sample in enumerate(crops.samples):
                box = crop_boxes(recipe, settings.seed, crops.epoch, [sample], view, [32], [32])[0].tolist()
                expected = TF.resized_crop(good.read(int(sample)), *box, size=[recipe.size] * 2, antialias=True)
                assert torch.equal(made[row].permute(2, 0, 1), expected)
                assert crops.labels[row] == good.labels[sample]


def test_views_are_the_same_by_each_loader_on_any_ranks_and_from_any_step(good: FolderImages) -> None:
    augment = Augment(VARIED.views, VARIED.seed, partial(view_recipes, VARIED, num_views=2))
    whole = [augment.inputs(crops) for crops in flat(load(good, VARIED, 0, 5))]
    assert all((len(views), len(small)) == (2, 3) for views, small in whole)
    assert all((views.shape[2:], small.shape[2:]) == ((3, 24, 24), (3, 10, 10)) for views, small in whole)
    others = (replace(VARIED, loader="resident"), replace(VARIED, workers=2))
    for start, settings in zip((1, 3), others):  # in the first and in the second entry of the schedule
        for inputs, crops in zip(whole[start:], flat(load(good, settings, start, 5)), strict=True):
            assert all(map(torch.equal, inputs, augment.inputs(crops)))
    ranks = [load(good, replace(VARIED, loader="resident"), 0, 5, rank=rank, world=2) for rank in range(2)]
    for inputs, *parts in zip(whole, *map(flat, ranks), strict=True):
        together = (torch.cat(pieces, 1) for pieces in zip(*map(augment.inputs, parts)))
        for one, two in zip(inputs, together, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("loader", "workers"), [("torchvision", 0), ("torchvision", 2), ("resident", 0)])
def test_steps_from_the_middle_are_the_tail_of_all_steps(good: FolderImages, loader: str, workers: int) -> None:
    settings = replace(VARIED, loader=loader, workers=workers, accumulate=2)
    everything = load(good, settings, 0, 7)
    assert [step[0].epoch for step in everything] == [0, 0, 1, 1, 2, 2, 3]  # 30 // 12 steps an epoch
    assert_same(load(good, settings, 3, 7), everything[3:])
    assert load(good, settings, 4, 4) == []


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_micro_batches_split_the_batch_of_the_step(good: FolderImages, loader: str, accumulate: int) -> None:
    whole = load(good, replace(VARIED, loader=loader), 0, 3)
    pieces = load(good, replace(VARIED, loader=loader, accumulate=accumulate), 0, 3)
    for (one,), step in zip(whole, pieces, strict=True):
        assert [len(crops.samples) for crops in step] == [12 // accumulate] * accumulate
        assert torch.equal(torch.cat([crops.images for crops in step], dim=1), one.images)
        assert torch.equal(torch.cat([crops.small for crops in step], dim=1), one.small)
        assert torch.equal(torch.cat([crops.labels for crops in step]), one.labels)
        assert np.array_equal(np.concatenate([crops.samples for crops in step]), one.samples)


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_load_what_one_rank_loads(good: FolderImages, loader: str, world: int) -> None:
    settings = replace(SETTINGS, loader=loader)
    ranks = [load(good, settings, 0, 3, rank=rank, world=world) for rank in range(world)]
    for (one,), *parts in zip(load(good, settings, 0, 3), *ranks, strict=True):
        assert torch.equal(torch.cat([crops.images for (crops,) in parts], dim=1), one.images)
        assert torch.equal(torch.cat([crops.labels for (crops,) in parts]), one.labels)
        assert np.array_equal(np.concatenate([crops.samples for (crops,) in parts]), one.samples)


@pytest.mark.parametrize("batch", [1, 7, 13, 30])
def test_odd_batches_load(good: FolderImages, batch: int) -> None:
    settings = replace(SETTINGS, batch_size=batch)
    torchvision = load(good, settings, 0, 3)
    assert_same(torchvision, load(good, replace(settings, loader="resident"), 0, 3))
    assert torchvision[0][0].images.shape[1] == batch


@pytest.mark.parametrize(("loader", "workers"), [("torchvision", 0), ("torchvision", 2), ("resident", 0)])
def test_next_good_image_and_its_label_stand_in_for_a_bad_one(
    damaged: FolderImages, good: FolderImages, loader: str, workers: int
) -> None:
    stand_in = {4: 6, 5: 6, 20: 21, 29: 0}
    settings = replace(SETTINGS, loader=loader, workers=workers, batch_size=30)
    for (crops,), (whole,) in zip(load(damaged, settings, 0, 2), load(good, settings, 0, 2), strict=True):
        assert np.array_equal(crops.samples, whole.samples)
        for row, sample in enumerate(crops.samples.tolist()):
            taken = stand_in.get(sample, sample)
            assert crops.labels[row] == good.labels[taken]
            box = crop_boxes(settings.views, settings.seed, crops.epoch, [sample], 1, [32], [32])[0].tolist()
            expected = TF.resized_crop(good.read(taken), *box, size=[24, 24], antialias=True)
            assert torch.equal(crops.images[1, row].permute(2, 0, 1), expected)
        untouched = [row for row, sample in enumerate(crops.samples.tolist()) if sample not in BAD]
        assert torch.equal(crops.images[:, untouched], whole.images[:, untouched])


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
def test_each_planned_image_that_is_bad_is_listed_once_with_its_reason(damaged: FolderImages, loader: str) -> None:
    (crops,), *_ = load(damaged, replace(SETTINGS, loader=loader, batch_size=30), 0, 1)
    assert sorted(sample for sample, _ in crops.replaced) == sorted(BAD)
    reasons = dict(crops.replaced)
    assert "not an image" in reasons[5]
    for sample in BAD:
        with pytest.raises(BadImage) as error:
            damaged.read(sample)
        assert reasons[sample] == str(error.value)


def test_loaders_list_the_same_replacements_for_every_batch(damaged: FolderImages) -> None:
    settings = replace(SETTINGS, batch_size=3)
    assert_same(load(damaged, settings, 0, 10), load(damaged, replace(settings, loader="resident"), 0, 10))


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
def test_a_set_without_a_readable_image_is_a_user_error(tmp_path: Path, loader: str) -> None:
    images = FolderImages(write_folder(tmp_path, count=4, bad=set(range(4))))
    with pytest.raises(UserError, match=r"read"):
        load(images, replace(SETTINGS, loader=loader, batch_size=2), 0, 1)


def test_automatic_choice_takes_torchvision_where_nothing_can_be_read(tmp_path: Path) -> None:
    images = FolderImages(write_folder(tmp_path, count=4, bad=set(range(4))))
    chosen, why = choose_images(images, replace(SETTINGS, loader="auto"), show_progress=False)
    assert chosen is images
    assert why.startswith("torchvision")


@pytest.mark.parametrize("other", [1, 7, 29])
def test_resident_is_refused_for_images_of_different_sizes(tmp_path: Path, other: int) -> None:
    write_folder(tmp_path)
    Image.new("RGB", (33, 32)).save(tmp_path / f"class{other // 10}" / f"{other:03d}.png")
    images = FolderImages(tmp_path)
    with pytest.raises(UserError, match=r"resident.*differ in size.*--loader torchvision"):
        choose_images(images, replace(SETTINGS, loader="resident"), show_progress=False)
    chosen, why = choose_images(images, replace(SETTINGS, loader="auto"), show_progress=False)
    assert chosen is images
    assert "differ in size" in why


def test_resident_is_refused_for_large_images(tmp_path: Path) -> None:
    images = FolderImages(write_folder(tmp_path, count=2, size=(32, 129)))
    with pytest.raises(UserError, match=r"32x129"):
        choose_images(images, replace(SETTINGS, loader="resident"), show_progress=False)
    assert choose_images(images, replace(SETTINGS, loader="auto"), show_progress=False)[0] is images


def test_automatic_choice_takes_small_images_into_memory(good: FolderImages) -> None:
    fits, why = fits_in_memory(good)
    assert fits, why
    chosen, why = choose_images(good, replace(SETTINGS, loader="auto"), show_progress=False)
    assert why.startswith("resident")
    assert len(chosen) == 30
    assert all(torch.equal(chosen.read(sample), good.read(sample)) for sample in range(30))
    assert [chosen.name(sample) for sample in (0, 29)] == [good.name(0), good.name(29)]
    assert choose_images(chosen, SETTINGS, show_progress=False)[0] is chosen


def crop_of_torchvision(image: Tensor | Image.Image, resize: int, side: int) -> Tensor | Image.Image:
    return Compose([Resize(resize), CenterCrop(side)])(image)


SHAPES = [(32, 32), (31, 33), (33, 31), (47, 80), (80, 47), (101, 57), (57, 101), (32, 39), (39, 32), (500, 375)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("resize", "side"), [(32, 32), (40, 32), (37, 24), (36, 31), (256, 224)])
def test_centre_crop_is_that_of_torchvision(height: int, width: int, resize: int, side: int) -> None:
    image = torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )
    got = centre_crop(image, resize, side)
    assert torch.equal(got.permute(2, 0, 1), crop_of_torchvision(image, resize, side))
    pil = crop_of_torchvision(Image.fromarray(image.permute(1, 2, 0).numpy()), resize, side)
    gap = (got.float() - torch.from_numpy(np.array(pil)).float()).abs()
    assert gap.max() <= 1
    assert gap.mean() < 0.5


def test_centre_crop_leaves_an_image_of_the_right_size_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(centre_crop(image, 32, 32).permute(2, 0, 1), image)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("resident", "resize"), [(False, 28), (True, 28), (True, 32)])
def test_evaluation_sees_each_image_once_and_reports_the_unreadable(
    damaged: FolderImages, workers: int, resident: bool, resize: int
) -> None:
    images = make_resident(damaged, 1, show_progress=False) if resident else damaged
    views, samples = Views(size=24, resize=resize), np.arange(30)
    batches: list[Centred] = list(centre_batches(images, samples, views, 7, workers))
    assert [len(batch.samples) + len(batch.skipped) for batch in batches] == [7, 7, 7, 7, 2]
    seen = torch.cat([batch.samples for batch in batches]).tolist()
    assert seen == [sample for sample in range(30) if sample not in BAD]
    skipped = dict(pair for batch in batches for pair in batch.skipped)
    assert set(skipped) == BAD
    assert "not an image" in skipped[29]
    for batch in batches:
        assert batch.labels.tolist() == damaged.labels[batch.samples.numpy()].tolist()
        for image, sample in zip(batch.images, batch.samples.tolist(), strict=True):
            assert torch.equal(image, centre_crop(damaged.read(sample), resize, 24))


def test_evaluation_of_a_batch_that_is_all_bad_or_of_nothing_goes_on(damaged: FolderImages) -> None:
    (batch,) = centre_batches(damaged, np.array([4, 5]), Views(size=24, resize=24), 7, 0)
    assert batch.images.shape == (0, 24, 24, 3)
    assert batch.labels.dtype == torch.int64
    assert len(batch.skipped) == 2
    assert list(centre_batches(damaged, np.arange(0), Views(), 7, 2)) == []
