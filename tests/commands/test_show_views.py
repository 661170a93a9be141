"""`simsiam show-views`: the picture is of what training sees, and says so in numbers."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.commands import show_views
from simsiam.commands.show_views import OneSample, Row, describe, differences, find_sample
from simsiam.data.loaders import choose_images, dali_is_installed, make_loader
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.data.sources.shapes import make_shapes
from simsiam.errors import UserError
from simsiam.settings.tree import Pretrain, Views


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, train=30, val=10)
    return root


@pytest.fixture
def call(capsys):
    """Runs the command and gives what it prints."""

    def run(*words):
        parser = argparse.ArgumentParser()
        show_views.add_arguments(parser)
        show_views.run(parser.parse_args([*map(str, words), "--device", "cpu"]))
        return capsys.readouterr().out

    return run


def test_the_picture_has_a_row_for_each_loader_and_the_rows_agree(shapes, call, tmp_path):
    printed = call(shapes, "--recipe", "quickstart", "--sample", 7, "--epoch", 3, "--out", tmp_path / "x.png")
    rows = 3 if dali_is_installed() else 2
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1500, 150 + 300 * rows)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    (line,) = (line for line in printed.splitlines() if line.startswith("resident"))
    assert "by at most 0 levels of 255 in the crops" in line
    assert "by at most 0.0 in the views, on average 0.000" in line
    assert ("dali        left out" in printed) != dali_is_installed()


def test_the_picture_is_named_after_sample_and_epoch(shapes, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (shapes, "--recipe", "quickstart", "--epoch", 2)
    assert "wrote       views_1_2.png" in call(*words, "--sample", FolderImages(shapes / "train").name(1))
    assert (tmp_path / "views_1_2.png").exists()


def test_a_large_image_has_no_resident_row_and_the_reason_is_told(tmp_path, call):
    (tmp_path / "set").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "set" / "1.png")
    printed = call(tmp_path / "set", "--out", tmp_path / "x.png")
    assert "resident    left out: --loader resident cannot hold this set: images of 150x200 pixels" in printed
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (1500, 150 + 300 * (2 if dali_is_installed() else 1))
    if not dali_is_installed():
        assert "torchvision is the only loader" in printed


@pytest.mark.parametrize("loader", ["torchvision", "resident"])
def test_the_stand_in_plan_gives_the_crops_of_training(shapes, loader):
    settings = Pretrain(batch_size=10, seed=5, workers=0, loader=loader, views=Views(size=24))
    images, _ = choose_images(FolderImages(shapes / "train"), settings, show_progress=False)
    plan = Plan(len(images), 10, settings.seed)
    step = 7  # of the third epoch of three steps each
    ((trained,),) = make_loader(images, plan, settings, 2, torch.device("cpu")).steps(step, step + 1)
    for row in (0, 9):
        one = OneSample(int(trained.samples[row]), plan.epoch(step))
        ((shown,),) = make_loader(images, one, replace(settings, batch_size=1), 2, torch.device("cpu")).steps(0, 1)
        assert torch.equal(shown.images[:, 0], trained.images[:, row])
        assert shown.samples.tolist() == [trained.samples[row]]
        assert shown.epoch == trained.epoch == 2


def test_seed_and_epoch_choose_the_views(shapes, call, tmp_path):
    pictures = []
    for words in ([], ["--seed", 1], ["--epoch", 1], ["--seed", 0, "--epoch", 0]):
        call(shapes, "--recipe", "quickstart", "--sample", 3, "--out", tmp_path / "x.png", *words)
        with Image.open(tmp_path / "x.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[0], pictures[3])


def test_a_view_is_described_in_the_order_it_is_made():
    box = [3, 2, 10, 20]
    never = Views(jitter=0, gray=0, blur=0, flip=0)
    assert describe(never, 0, 0, 5, 0, box) == (
        "view 1: 20x10 pixels at left 2, top 3; no jitter; not gray; no blur; not flipped"
    )
    always = Views(jitter=1, gray=1, blur=1, flip=1, brightness=0, contrast=0, saturation=0, hue=0)
    words = describe(replace(always, blur_sigma=(1.5, 1.5)), 0, 0, 5, 1, box)
    assert words.startswith("view 2")
    assert words.endswith("; gray; blur sigma 1.50 px; flipped")
    for part in ("brightness x 1.000", "contrast x 1.000", "saturation x 1.000", "hue +0.000 turns"):
        assert part in words


def test_branches_small_views_and_schedule_are_drawn(shapes, call, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(
        "encoder: resnet8\n"
        "views: {size: 32, resize: 32, jitter: 0.0, gray: 0.0}\n"
        "method: {name: swav, dim: 8, projector_hidden: 8, prototypes: 4}\n"
        "branches: [{blur: 1.0}, {blur: 0.0, solarize: 1.0}]\n"
        "small_views: {count: 6, size: 16}\n"
        "views_schedule: [{until: 2, gray: 1.0}]\n"
    )
    calls, draw = [], show_views._draw
    monkeypatch.setattr(show_views, "_draw", lambda *given: calls.append(given) or draw(*given))
    for epoch, gray in ((1, True), (2, False)):
        printed = call(shapes, "--recipe", tmp_path / "mine.yaml", "--epoch", epoch, "--out", tmp_path / "x.png")
        (line,) = (line for line in printed.splitlines() if line.startswith("resident"))
        assert "by at most 0 levels of 255 in the crops" in line
        assert "by at most 0.0 in the views" in line
        _, _, rows, drawn, *_ = calls.pop()
        with Image.open(tmp_path / "x.png") as picture:
            assert picture.size == (6 * 300, 2 * 300 * len(rows) + 60 + 38 + 8 * 26)
        assert len(rows) == 2 + dali_is_installed()
        for row in rows:
            assert (row.crops.shape, row.views.shape) == ((2, 32, 32, 3), (2, 3, 32, 32))
            assert (row.small_crops.shape, row.small_views.shape) == ((6, 16, 16, 3), (6, 3, 16, 16))
        assert [words.partition(":")[0] for words in drawn.words] == [f"view {number}" for number in range(1, 9)]
        assert [("blur sigma" in words, "; solarized;" in words) for words in drawn.words[:2]] == [(1, 0), (0, 1)]
        assert all(("; gray;" in words) == gray for words in drawn.words)
        assert all(height * width < 0.2 * 32 * 32 for *_, height, width in drawn.boxes[2:])


def test_differences_are_in_levels():
    crops, views = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, 4, 4)
    other = crops.clone()
    other[0, 0, 0, 0] = 96
    changed = views.clone()
    changed[1, 0, 0, 0] = 1  # one standard deviation of red
    lines = differences([Row("a", crops, views), Row("b", other, changed)], Views(std=(0.2, 0.5, 0.5)))
    assert lines == [
        "b           differs from a by at most 96 levels of 255 in the crops, on average 1.000, and by at most 51.0 in "
        "the views, on average 0.531"
    ]


def test_samples_are_found_by_number_name_and_end_of_a_name(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/deep/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    images = FolderImages(tmp_path)
    assert [find_sample(images, word) for word in ("2", "a/1.png", "b/deep/2.png", "2.png")] == [2, 0, 2, 2]
    for word, sentence in {
        "3": "There is no sample 3: the training set has 3 images, 0 to 2",
        "-1": "There is no sample -1",
        "cat.png": "No image of the training set is called 'cat.png'.*such as a/1.png",
        "1.png": "2 images are called '1.png', such as a/1.png and b/1.png; give the whole name",
    }.items():
        with pytest.raises(UserError, match=sentence):
            find_sample(images, word)


def test_an_unreadable_image_and_a_picture_that_cannot_be_written_are_named(shapes, call, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bad.jpg").write_text("hello")
    Image.new("RGB", (40, 40)).save(tmp_path / "set" / "good.png")
    with pytest.raises(UserError, match=r"Sample 0, bad.jpg, cannot be read \(not an image.*take another"):
        call(tmp_path / "set", "--sample", 0)
    with pytest.raises(UserError, match=r"nowhere/x.png cannot be written .*--out"):
        call(tmp_path / "set", "--sample", 1, "--recipe", "quickstart", "--out", tmp_path / "nowhere" / "x.png")
    with pytest.raises(UserError, match="--epoch -1 is below 0"):
        call(shapes, "--epoch", -1)
