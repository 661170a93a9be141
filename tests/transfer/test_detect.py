"""transfer/detect.py: trains, tests, goes on where it was cut off, repeats in trials, and what it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from simsiam.data.sources.scenes import make_scenes
from simsiam.export.write import write_encoder
from simsiam.models.encoders import build_encoder
from tests.faults.harness import state_at
from tests.run_files import figures

Call = Callable[..., int]
TINY = (
    "--recipe", "shapes-voc", "--batch-size", 2, "--workers", 0, "--iterations", 6, "--precise-bn", 2, "--log-every", 1,
    "--sizes.train", "[48,64]", "--sizes.test", 64, "--sizes.longest", 96, "--sizes.region_batch", 8,
    "--sizes.post_nms", "[20,8]", "--sizes.region_side", 7, "--precision", "fp32",
    "--hide-progress", "--checkpoint.every_steps", 4,
)  # fmt: skip
RANDOM = ("--pretrained", "random", "--encoder", "resnet18")
AP = ("AP50", "AP", "AP75")
COCO = ("--train-sets", "[coco_2017_train]", "--test-set", "coco_2017_val")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "voc"
    make_scenes(root, "voc", train=6, val=5)
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "coco"
    make_scenes(root, "coco", train=6, val=5)
    return root


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_cut_off_anywhere_ends_as_if_it_had_not_been(call: Call, voc: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    given = (*TINY, "--data", voc, *RANDOM, "--accumulate", 2, "--test-every", 3)
    assert call("transfer/detect.py", *given, "--out", whole) == 0
    for at in (3, 4):
        cut = tmp_path / f"cut at {at}"
        assert call("transfer/detect.py", *given, "--out", cut, "--max-steps", at) == 0
        assert call("transfer/detect.py", *given, "--out", cut) == 0
        one, two = (state_at(folder / "checkpoints/step_00000006") for folder in (whole, cut))
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
        one, two = (load_file(folder / "detector.safetensors") for folder in (whole, cut))
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
        assert {name: figures(whole)[name] for name in AP} == {name: figures(cut)[name] for name in AP}
        losses = [{line["step"]: line["loss"] for line in lines(folder) if "loss" in line} for folder in (whole, cut)]
        assert losses[0] == losses[1]
    assert [line["step"] for line in lines(whole) if "AP50" in line] == [3, 6]
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} < lines(whole)[0].keys()


def test_two_ranks_train_and_test_and_any_number_tests_alike(
    call: Call, forked: Callable, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    given = (*TINY, "--data", voc, *RANDOM, "--out", out, "--workers", 1)
    forked("transfer/detect.py", *given, ranks=2)
    found = {name: figures(out)[name] for name in AP}
    again = forked("transfer/detect.py", *given, "--evaluate-only", ranks=2).stdout
    assert call("transfer/detect.py", *given, "--evaluate-only") == 0
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    assert told in again
    assert told in capsys.readouterr().out
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    with_objects = [float(row["AP50"]) for row in rows if row["AP50"] != "nan"]
    assert sum(with_objects) / len(with_objects) == pytest.approx(found["AP50"], abs=1e-3)
    assert (out / "completed").exists()


def test_trials_give_mean_and_deviation_and_are_not_run_again(
    call: Call, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    given = (*TINY, "--data", voc, *RANDOM, "--iterations", 2, "--out", out, "--trials", 2)
    assert call("transfer/detect.py", *given) == 0
    assert "2 trials: AP50" in capsys.readouterr().out
    told = figures(out)
    each = [figures(out / "trials" / str(number)) for number in (1, 2)]
    assert told["state"] == "completed"
    assert told["AP50"] == pytest.approx((each[0]["AP50"] + each[1]["AP50"]) / 2)
    assert told["AP50_std"] == pytest.approx(abs(each[0]["AP50"] - each[1]["AP50"]) / 2**0.5)
    seeds = [yaml.safe_load((out / "trials" / str(n) / "config.yaml").read_text())["seed"] for n in (1, 2)]
    assert seeds == [0, 1]
    written = (out / "trials/1/summary.json").stat().st_mtime_ns
    shutil.rmtree(out / "trials/2")
    assert call("transfer/detect.py", *given) == 0
    assert (out / "trials/1/summary.json").stat().st_mtime_ns == written
    assert figures(out) == told
    assert call("transfer/detect.py", *given, "--evaluate-only") == 0
    assert f"2 trials: AP50 {told['AP50']:.2f} +- {told['AP50_std']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_masks_are_trained_tested_and_drawn(call: Call, coco: Path, tmp_path: Path, head: str) -> None:
    out, encoder = tmp_path / "run", tmp_path / "encoder.safetensors"
    torch.manual_seed(0)
    write_encoder(build_encoder("resnet18"), encoder, metadata={"pixel_mean": "[0.5, 0.5, 0.5]"})
    fpn = ("--sizes.anchors", "[8,16,32,64,128]", "--precise-bn", 0) if head == "fpn" else ()
    given = (*TINY, "--data", coco, *COCO, "--mask", "true", "--head", head, *fpn, "--pretrained", encoder)
    assert call("transfer/detect.py", *given, "--iterations", 2, "--out", out, "--visualize", 3) == 0
    told = figures(out)
    assert {"AP50", "AP", "AP75", "mask_AP50", "mask_AP", "mask_AP75"} <= told.keys()
    assert told["test_images"] == 5
    assert len(list((out / "detections").glob("*.png"))) == 3
    assert (out / "detections.png").exists()
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        rows = json.loads((out / f"detections_{kind}.json").read_text())
        assert all({"image_id", "category_id", "score", key} == row.keys() for row in rows)
    assert "loss_mask" in lines(out)[0]


def test_debug_tries_everything_in_two_steps(call: Call, voc: Path, tmp_path: Path) -> None:
    given = ("--recipe", "shapes-voc", "--data", voc, *RANDOM, "--debug", "--hide-progress", "--sizes.region_batch", 8)
    assert call("transfer/detect.py", *given, "--out", tmp_path / "run") == 0
    assert figures(tmp_path / "run-debug")["step"] == 2
    assert (tmp_path / "run-debug/detections.png").exists()


def test_a_mistake_is_one_sentence_before_anything_is_trained(
    call: Call, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = tmp_path / "strange.pth"
    torch.save({"head.weight": torch.zeros(3, 3)}, wrong)
    unknown = shutil.copytree(voc, tmp_path / "voc")
    xml = unknown / "VOC2007/Annotations/train_000002.xml"
    xml.write_text(xml.read_text().replace("<name>shape", "<name>blob", 1))
    good = ("--data", voc, *RANDOM)
    cases = [
        (("--data", voc), "No encoder is given"),
        (("--data", voc, "--pretrained", wrong), "strange.pth"),
        (("--data", voc, "--pretrained", "random", "--encoder", "resnet8"), "cannot become a detector"),
        (("--data", unknown, *RANDOM), "train_000002.xml has an object of the class 'blob"),
        ((*good, "--trials", 0), "--trials is 0; it must be at least 1"),
        ((*good, "--batch-size", 64), "larger than the training set of 6 images"),
        ((*good, "--evaluate-only"), "is no detector of transfer/detect.py"),
        ((*good, "--epochs", 3), "Unknown setting 'epochs' for detect.py"),
    ]
    for given, says in cases:
        assert call("transfer/detect.py", *TINY, *given, "--out", tmp_path / "run") == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert says in told
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_run_folder_keeps_its_encoder_and_its_classes(
    call: Call, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, given = tmp_path / "run", (*TINY, "--data", voc, *RANDOM, "--iterations", 2)
    assert call("transfer/detect.py", *given, "--out", out) == 0
    assert call("transfer/detect.py", *given, "--out", out, "--seed", 1) == 2
    assert "other settings (seed was 0 and is 1)" in capsys.readouterr().err
    assert call("transfer/detect.py", *given, "--out", out, "--seed", 1, "--allow-change", "seed") == 2
    assert "another encoder" in capsys.readouterr().err
    other = tmp_path / "two"
    shutil.copytree(voc, other)
    (other / "classes.txt").write_text((voc / "classes.txt").read_text().replace("shape0", "shape00"))
    for xml in (other / "VOC2007/Annotations").iterdir():
        xml.write_text(xml.read_text().replace("shape0", "shape00"))
    assert call("transfer/detect.py", *given, "--data", other, "--out", out, "--evaluate-only") == 2
    assert "finds 10 classes (shape0, " in capsys.readouterr().err
