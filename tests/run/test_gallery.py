"""Neighbours and map of a run: made once, kept in its folder, read back with distrust."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.errors import UserError
from simsiam.export.read import read_encoder
from simsiam.export.write import write_encoder
from simsiam.models.encoders import build_encoder
from simsiam.run.gallery import make_gallery, read_gallery, without_encoder
from simsiam.run.gallery_page import gallery_parts
from simsiam.run.record import read_run
from simsiam.settings.tree import Views
from tests.run.fakes import classification, detection, gallery, pretraining

VIEWS = Views(size=16, resize=16)
CPU = torch.device("cpu")


def images(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return str(root)


def run_with_encoder(folder, data, seed=0):
    if not folder.exists():
        pretraining(folder, data=data)
    torch.manual_seed(seed)
    write_encoder(build_encoder("resnet8"), folder / "encoder.safetensors", metadata={"step": "40"})
    return read_run(folder), read_encoder(folder)


@pytest.fixture
def pets(tmp_path):
    train = [f"train/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)]
    return images(tmp_path / "pets", *train, *(f"val/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(6)))


def test_it_is_made_of_validation_images_and_kept_for_this_encoder(tmp_path, pets):
    run, read = run_with_encoder(tmp_path / "run", pets)
    assert make_gallery(run, read, VIEWS, CPU)
    made = read_gallery(run.path)
    assert (made.data, made.split, made.step, made.classes) == (pets, "val", "40", ["cat", "dog"])
    assert made.labels == [0] * 6 + [1] * 6
    assert [row[0] for row in made.rows] == [3, 9]
    assert all(len(set(row)) == 11 for row in made.rows)
    assert made.same == pytest.approx(5 / 11, abs=0.05)  # of eleven others the ten nearest, five or four of them alike
    assert Image.open(run.path / "neighbours.jpg").size == (11 * 16, 2 * 16)

    assert not make_gallery(run, read, VIEWS, CPU)
    run, other = run_with_encoder(run.path, pets, seed=1)
    assert make_gallery(run, other, VIEWS, CPU)
    assert read_gallery(run.path).encoder_sha256 != made.encoder_sha256


def test_a_tile_of_the_sheet_is_the_image_of_its_place(tmp_path):
    root = tmp_path / "grey"
    for level in range(12):
        (root / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * level,) * 3).save(root / "train" / "a" / f"{level:02}.png")
    run, read = run_with_encoder(tmp_path / "run", str(root))
    make_gallery(run, read, VIEWS, CPU)
    made = read_gallery(run.path)
    sheet = np.asarray(Image.open(run.path / "neighbours.jpg"))
    for column, place in enumerate(made.rows[0]):
        assert abs(float(sheet[2:14, 16 * column + 2 : 16 * column + 14].mean()) - 20 * place) < 3
    assert made.split == "pretrain"


def test_images_without_labels_have_neighbours_and_no_names(tmp_path):
    data = images(tmp_path / "flat", *(f"{n}.png" for n in range(12)))
    run, read = run_with_encoder(tmp_path / "run", data)
    make_gallery(run, read, VIEWS, CPU)
    made = read_gallery(run.path)
    assert (made.classes, made.same, set(made.labels), len(made.rows)) == ([], None, {-1}, 10)
    html = "".join(gallery_parts(run, ""))
    assert html.count("<i ") == 10 * 11
    assert "same" not in html.partition("<figcaption>")[2]
    assert "among 12 training images of" in html


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("/no/such/folder", "neither a folder nor a built-in"),
        ("s3://bucket/images", "its data is elsewhere"),
        ("", "does not say"),
        (["a"], "does not say"),
    ],
)
def test_data_that_is_not_here_is_told_and_nothing_written(tmp_path, data, says):
    run, read = run_with_encoder(tmp_path / "run", data)
    with pytest.raises(UserError, match=says):
        make_gallery(run, read, VIEWS, CPU)
    assert read_gallery(run.path) is None


def test_runs_without_an_encoder_of_their_own_say_whose_it_is(tmp_path):
    linear = read_run(classification(tmp_path / "lin", pretrained="runs/r50"))
    assert without_encoder(linear).endswith("that of runs/r50")
    (linear.path / "encoder.safetensors").touch()
    assert without_encoder(linear) == ""
    assert "a detector" in without_encoder(read_run(detection(tmp_path / "det")))
    assert without_encoder(read_run(pretraining(tmp_path / "pre"))) == ""


def test_the_page_says_what_is_lacking(tmp_path):
    run = read_run(pretraining(tmp_path / "a"))
    assert "simsiam report RUN --pictures" in "".join(gallery_parts(run, ""))
    assert "No neighbours and map: the disk is gone." in "".join(
        gallery_parts(run, "No neighbours and map: the disk is gone")
    )
    gallery(run.path)
    assert "lacking" not in "".join(gallery_parts(run, ""))
    both = "".join(gallery_parts(run, "No neighbours and map: the disk is gone"))
    assert "the disk is gone" in both
    assert "Nearest neighbours" in both
    gallery(run.path, maps={})
    assert "No map: the features of all images are one point" in "".join(gallery_parts(run, ""))


def test_the_page_names_classes_as_text_and_frames_what_is_alike(tmp_path):
    run = read_run(pretraining(tmp_path / "a"))
    gallery(run.path, classes=["<script>", 'do"g'])
    html = "".join(gallery_parts(replace(run), ""))
    assert "<script>" not in html
    assert html.count('class="same"') == 2 + 3
    assert 'title="do&quot;g"' in html
    assert "among 8 validation images of 2 of 37 classes of /data/pets, by the encoder of step 40" in html
    assert "as 75% of the neighbours of all these images are (43% by chance)" in html


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": [0, 1]},
        {"labels": [7] * 8},
        {"rows": [[0, 99]]},
        {"rows": [[0, 1], [0]]},
        {"rows": []},
        {"rows": [[0.5, 1]]},
        {"rows": [[0] * 500]},
        {"maps": {"PCA": [[0.1, 0.2]]}},
        {"maps": {"PCA": [["0", "1"]] * 8}},
        {"maps": {"PCA": [[0, 1e9]] * 8}},
        {"classes": [1, 2]},
        {"same": "half"},
        {"further": 1},
        {"step": None},
    ],
)
def test_a_damaged_or_foreign_file_counts_as_none(tmp_path, wrong):
    run = pretraining(tmp_path / "a")
    gallery(run)
    assert read_gallery(run) is not None
    gallery(run, **wrong)
    assert read_gallery(run) is None
    (run / "gallery.json").write_text(json.dumps([1]))
    assert read_gallery(run) is None
