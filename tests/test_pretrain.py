"""pretrain.py and lincls.py as a user meets them: what a run leaves behind, and how mistakes end."""

import gzip
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from simsiam import load_encoder
from simsiam.evaluation.monitor import KnnMonitor
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from tests.faults.harness import state_at

TINY = (
    "--recipe", "quickstart", "--data", "digits", "--batch-size", 64, "--views.size", 8, "--views.resize", 8,
    "--hide-progress", "--log-every", 1,
)  # fmt: skip


def test_a_run_leaves_everything_and_its_encoder_is_measured(launch, forked, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch("pretrain.py", *TINY, "--max-steps", 3, "--out", run)
    for name in ("config.yaml", "first_views.png", "curves.svg", "summary.json", "completed", "checkpoints/latest"):
        assert (run / name).exists(), name
    assert list((run / "tensorboard").glob("events*"))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    for key in ("loss", "std", "effective_rank", "verdict", "lr", "grad_norm", "pairs_per_second", "data_seconds"):
        assert key in line
    again = forked("pretrain.py", "-c", run / "config.yaml")
    assert "complete at step 3" in again.stdout
    assert json.loads((run / "summary.json").read_text())["knn"] >= 0
    refused = forked("pretrain.py", "-c", run / "config.yaml", "--resume", "never", check=False)
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr

    linear = tmp_path / "linear"
    probe = ("--recipe", "lincls-quickstart", "--data", "digits", "--views.size", 8, "--views.resize", 8)
    forked("lincls.py", *probe, "--pretrained", run, "--epochs", 2, "--hide-progress", "--out", linear)
    summary = json.loads((linear / "summary.json").read_text())
    assert summary["encoder_sha256"] == encoder_hash(load_encoder(run))
    assert summary["val_images"] == 360
    evaluated = forked("lincls.py", "-c", linear / "config.yaml", "--evaluate", ranks=2)
    assert f"top-1 {summary['top1']:.2f}%" in evaluated.stdout


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(forked, tmp_path: Path) -> None:
    done = forked("pretrain.py", *TINY, "--max-steps", 9, "--optim.lr", "1e30", "--out", tmp_path, check=False)
    assert done.returncode == 3
    assert "not finite at step" in done.stderr
    assert (tmp_path / "failed").exists()
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "/no/such/folder"), "neither a folder nor a built-in"),
        (("--encoder", "resnet5O"), "resnet50"),
        (("--optim.lrr", "1"), "optim.lr"),
        (("--recipe", "cifar10r18"), "cifar10-r18"),
        (("--method", "simsia"), "simsiam"),
        (("--batch-size", "33", "--accumulate", "2"), "32 or 34"),
        (("--batch-size", "99999"), "larger than the training set"),
        (("--out", "/dev/null/run"), "cannot be written"),
        (("--data", ""), "No dataset is given"),
        (("--resume", "/no/such/run"), "no checkpoint"),
        (("--profile", "-1"), "--profile is -1; it must be at least 0"),
        (("--optim.final_lr", "-0.1"), "--optim.final-lr is -0.1"),
        (("--init", "/no/such/encoder"), "/no/such/encoder"),
        (("--method.projector_hidden", f"{10**13}"), "rank 0 has no memory left on cpu"),
    ],
)
def test_a_mistake_ends_in_one_sentence(call, capsys, tmp_path: Path, arguments: tuple, says: str) -> None:
    assert call("pretrain.py", *TINY, "--out", tmp_path / "run", *arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_odd_images_train_and_unreadable_ones_are_listed(forked, tmp_path: Path) -> None:
    folder = tmp_path / "images/train"
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (40, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            image.save(folder / name / f"{number}.jpg")
    image.convert("CMYK").save(folder / "a/cmyk.jpg")
    image.convert("L").save(folder / "a/gray.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "b/deep.png")
    Image.new("RGB", (1, 1)).save(folder / "b/one.png")
    whole = io.BytesIO()
    image.save(whole, "JPEG")
    (folder / "a/cut.jpg").write_bytes(whole.getvalue()[:-400])
    (folder / "b/text.jpg").write_text("not an image")
    settings = ("--data", tmp_path / "images", "--batch-size", 6, "--epochs", 1, "--loader", "torchvision")
    forked("pretrain.py", *TINY, *settings, "--out", tmp_path / "run")
    listed = {line.split("\t")[0] for line in (tmp_path / "run/bad_files.txt").read_text().splitlines()}
    assert listed == {"a/cut.jpg", "b/text.jpg"}
    assert json.loads((tmp_path / "run/summary.json").read_text())["replaced_images"] == 2


def test_its_own_config_file_repeats_a_run(call, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("pretrain.py", *TINY, "--max-steps", 3, "--seed", 4, "--optim.lr", 0.2, "--out", first) == 0
    assert call("pretrain.py", "-c", first / "config.yaml", "--out", second) == 0
    a, b = (load_file(run / "encoder.safetensors") for run in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a)
    settings = [(run / "config.yaml").read_text().split("\n", 1)[1] for run in (first, second)]
    assert settings[0] == settings[1].replace(str(second), str(first))
    assert call("pretrain.py", "-c", first / "config.yaml", "--out", tmp_path / "third", "--seed", 5) == 0
    third = load_file(tmp_path / "third/encoder.safetensors")
    assert not torch.equal(a["conv1.weight"], third["conv1.weight"])


def test_it_begins_with_the_encoder_it_is_given(call, capsys, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("pretrain.py", *TINY, "--max-steps", 3, "--out", first) == 0
    frozen = ("--method", "byol", "--optim.lr", 0, "--max-steps", 1, "--seed", 5)
    assert call("pretrain.py", *TINY, *frozen, "--init", first, "--out", second) == 0
    a, b = (load_file(run / "encoder.safetensors") for run in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a if "running" not in key and "num_batches" not in key)
    target = state_at(second / "checkpoints/step_00000001")
    assert torch.equal(target["model.target.encoder.conv1.weight"], a["conv1.weight"])
    summary = json.loads((second / "summary.json").read_text())
    assert "knn_start" in summary
    assert "knn_random" not in summary
    shutil.rmtree(first)
    further = ("--method", "byol", "--optim.lr", 0, "--max-steps", 2, "--seed", 5)
    assert call("pretrain.py", *TINY, *further, "--init", first, "--out", second) == 0
    capsys.readouterr()
    assert call("pretrain.py", *TINY, "--init", second, "--encoder", "resnet32", "--out", tmp_path / "third") == 2
    assert "give --encoder resnet8" in capsys.readouterr().err


def test_closed_branches_of_a_given_encoder_stay_as_they_are(call, tmp_path: Path) -> None:
    closed = build_encoder("resnet8")  # whose residual branches begin with a scale of 0
    write_encoder(closed, tmp_path / "closed.safetensors", metadata={})
    given = ("--init", tmp_path / "closed.safetensors", "--zero-init-residual", "false", "--knn-every", 0)
    still = ("--optim.lr", 0, "--max-steps", 1, "--out", tmp_path / "run")
    assert call("pretrain.py", *TINY, *given, *still) == 0
    after = load_file(tmp_path / "run/encoder.safetensors")
    assert all(torch.equal(after[key], tensor) for key, tensor in closed.named_parameters())


def test_steps_are_profiled_where_that_is_asked_for(call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("pretrain.py", *TINY, "--max-steps", 8, "--knn-every", 0, "--profile", 2, "--out", run) == 0
    with gzip.open(run / "profile/step_00000005_rank_00000.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 2
    assert "aten::convolution_backward" in (run / "profile/step_00000005_rank_00000.txt").read_text()


def test_a_run_too_short_to_profile_says_so(call, capsys, tmp_path: Path) -> None:
    few = ("--max-steps", 4, "--knn-every", 0, "--profile", 2, "--out", tmp_path / "run")
    assert call("pretrain.py", *TINY, *few) == 0
    assert "nothing is traced of a run of 4 steps" in capsys.readouterr().out


def test_writing_a_profile_is_no_hang(call, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda self, path: time.sleep(5))
    few = ("--max-steps", 9, "--knn-every", 0, "--profile", 2, "--hang-timeout", 2, "--out", tmp_path / "run")
    assert call("pretrain.py", *TINY, *few) == 0


def test_debug_tries_every_stage_in_a_folder_of_its_own(call, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("pretrain.py", *TINY, "--out", tmp_path / "run", "--debug") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run-debug"]
    summary = json.loads((tmp_path / "run-debug/summary.json").read_text())
    assert (summary["step"], summary["state"]) == (2, "completed")
    assert 0 <= summary["knn"] <= 100
    assert load_encoder(tmp_path / "run-debug").feature_dim == 64
    assert (tmp_path / "run-debug/checkpoints/step_00000002/.metadata").exists()
    assert call("pretrain.py", *TINY, "--out", tmp_path / "run", "--debug") == 0  # as often as one likes
    assert "from 0 to 2" in capsys.readouterr().out.split("completed in")[1]


def test_a_run_that_goes_wrong_names_its_last_good_checkpoint_and_goes_on_from_it(
    call, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = ("pretrain.py", *TINY, "--out", tmp_path)
    assert call(*run, "--max-steps", 2) == 0
    good = load_file(tmp_path / "encoder.safetensors")
    capsys.readouterr()
    assert (
        call(*run, "--max-steps", 9, "--optim.lr", "1e30", "--checkpoint.every_steps", 1, "--allow-change", "optim.lr")
        == 3
    )
    told = capsys.readouterr().err
    step = int(re.search(r"not finite at step (\d+)", told)[1])
    newest = sorted(tmp_path.glob("checkpoints/step_*"))[-1]
    assert str(newest) in told
    assert newest.name == f"step_{step - 1:08d}"
    assert (tmp_path / "failed").exists()
    assert not (tmp_path / "completed").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "failed"
    assert not (tmp_path / "encoder.safetensors").exists()  # it would be taken for this run's
    kept = tmp_path / "checkpoints/step_00000002"
    assert call(*run, "--max-steps", 3, "--resume", kept, "--allow-change", "optim.lr") == 0
    assert (tmp_path / "completed").exists()
    assert not (tmp_path / "failed").exists()
    assert good.keys() == load_file(tmp_path / "encoder.safetensors").keys()


def test_ctrl_c_before_the_first_step_is_no_failure(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pressed(*_: object) -> float:
        raise KeyboardInterrupt

    run = ("pretrain.py", *TINY, "--knn-every", 1, "--max-steps", 1, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(KnnMonitor, "accuracy", pressed)
        assert call(*run) == 130
    assert (tmp_path / "preempted").exists()
    assert call(*run) == 0
    assert (tmp_path / "completed").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_ends_before_its_time_is_up_and_the_same_command_goes_on(forked, tmp_path: Path, ranks: int) -> None:
    given = (*TINY, "--max-steps", 6, "--knn-every", 0, "--world-size", ranks)
    out = ("--out", tmp_path / "limited")
    # Of ten seconds none is left for training: a save, its margin and two steps are kept free.
    limited = forked("pretrain.py", *given, *out, "--max-wall-time", "0:00:10", ranks=ranks)
    assert "ends early: --max-wall-time 0:00:10 is near and has, at step" in limited.stdout
    assert (tmp_path / "limited/preempted").exists()
    assert json.loads((tmp_path / "limited/summary.json").read_text())["state"] == "preempted"
    forked("pretrain.py", *given, *out, ranks=ranks)
    forked("pretrain.py", *given, "--out", tmp_path / "straight", ranks=ranks)
    ends = [load_file(tmp_path / name / "encoder.safetensors") for name in ("limited", "straight")]
    assert all(torch.equal(ends[0][key], tensor) for key, tensor in ends[1].items())


def test_metrics_of_a_resumed_run_stand_once_each(call, tmp_path: Path) -> None:
    run = ("pretrain.py", *TINY, "--checkpoint.every_steps", 2, "--knn-every", 0, "--out", tmp_path)
    assert call(*run, "--max-steps", 5) == 0
    shutil.rmtree(tmp_path / "checkpoints/step_00000005")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut off by a crash
    assert call(*run, "--max-steps", 6) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (("train/a/1.png", "train/b/"), "class folder b"),
        (("val/a/1.png",), "train"),
        ((), "No image in"),
        (("train/a/1.png", "train/2.png"), "both class folders and 1 loose images"),
        (("train/a/1.png", "val/a/1.png"), "larger than the training set of 1 images"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_one_sentence(
    call, tmp_path: Path, capsys: pytest.CaptureFixture, make: tuple, says: str
) -> None:
    (tmp_path / "data").mkdir()
    for name in make:
        path = tmp_path / "data" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            Image.new("RGB", (16, 16)).save(path)
    assert call("pretrain.py", *TINY, "--data", tmp_path / "data", "--out", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "mistake",
    [
        ("--encoder", "resnet5O"),
        ("--batch-size", 99999),
        ("--resume", "/no/such/run"),
        ("--method.dim", 32),
        ("--max-steps", 2, "--max-wall-time", "5x"),
        ("--max-steps", 2, "--workers", -1),
    ],
    ids=["encoder", "batch", "resume", "width", "time", "workers"],
)
def test_a_mistake_leaves_a_finished_run_as_it_was(call, tmp_path: Path, mistake: tuple) -> None:
    run = ("pretrain.py", *TINY, "--max-steps", 1, "--knn-every", 0, "--out", tmp_path)
    assert call(*run) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert call(*run, *mistake) == 2
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(before.keys() ^ after.keys()) == []
    assert [path.name for path in before if before[path] != after[path]] == []


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_ranks_is_one_sentence_from_one_of_them(forked, tmp_path: Path) -> None:
    done = forked("pretrain.py", *TINY, "--batch-size", 32, "--out", tmp_path, ranks=3, check=False)
    ours = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(ours) == 1
    assert "--batch-size 32 does not divide over 3 ranks" in ours[0]
    assert "take 30 or 33" in ours[0]
    assert 'pretrain.py", line' not in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()
