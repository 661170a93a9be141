"""The linear protocol: two tensors train, the encoder does not move, and lincls.py goes on and measures again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from simsiam.data.crops import Crops
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.accuracy import Accuracy
from simsiam.evaluation.classifier import write_classifier
from simsiam.evaluation.inputs import ImageInputs
from simsiam.evaluation.linear import LinearProbe
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.encoders import build_encoder
from simsiam.settings.derive import derive
from simsiam.settings.tree import Linear, Optim, Views
from simsiam.training.build import build_state
from simsiam.training.step import train_step
from tests.run_files import figures, losses

Command = Callable[..., int]


def probe(classes: int = 4) -> LinearProbe:
    torch.manual_seed(0)
    return LinearProbe(build_encoder("resnet8"), classes)


def batch(images: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, 16, 16, generator=generator) + 2, torch.arange(images) % classes


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_exactly_two_tensors_train_and_no_bit_of_the_encoder_changes(name: str) -> None:
    module = probe()
    settings = Linear(batch_size=12, epochs=1, precision="fp32", optim=Optim(name=name, lr=20.0, weight_decay=0.1))
    state = build_state(module, settings, derive(settings, 1, 120), Runtime(0, 1, 0, torch.device("cpu")))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    fingerprint = encoder_hash(module.encoder)
    for _ in range(3):
        train_step(state, [batch()])
    moved = [key for key, tensor in module.state_dict().items() if not torch.equal(before[key], tensor)]
    assert moved == ["heads.0.weight", "heads.0.bias"]
    assert encoder_hash(module.encoder) == fingerprint
    assert [key for key, p in module.named_parameters() if p.requires_grad] == ["heads.0.weight", "heads.0.bias"]
    assert [key for key in state.tensors() if key.startswith("optimizer")] == [
        "optimizer.heads.0.weight.momentum_buffer", "optimizer.heads.0.bias.momentum_buffer",
    ]  # fmt: skip


def test_the_hash_would_notice_one_batch_norm_statistic() -> None:
    module = probe()
    fingerprint = encoder_hash(module.encoder)
    module.encoder.bn1.running_mean[3] += 1e-6
    assert encoder_hash(module.encoder) != fingerprint


def test_the_encoder_stays_in_evaluation_mode_whatever_the_mode_of_the_probe() -> None:
    module = probe()
    for mode in (True, False, True):
        assert module.train(mode).training is mode
        assert not any(part.training for part in module.encoder.modules())


def test_loss_and_gradient_are_those_of_a_linear_layer_on_features() -> None:
    module, (images, labels) = probe().train(), batch()
    output = module(images, labels)
    output.loss.backward()
    features = module.encoder.eval()(images)
    head = nn.Linear(64, 4)
    head.load_state_dict(module.heads[0].state_dict())
    expected = F.cross_entropy(head(features), labels)
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(module.heads[0].weight.grad, head.weight.grad)
    torch.testing.assert_close(module(images.unsqueeze(0), labels).loss, expected)  # as the loader gives one view
    assert not output.logits.requires_grad


def test_the_classifier_starts_as_the_official_one() -> None:
    torch.manual_seed(0)
    encoder = nn.Identity()
    encoder.feature_dim = 2048
    head = LinearProbe(encoder, 100).heads[0]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert head.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert not head.bias.any()


def test_batch_norm_before_the_head_bears_features_that_hardly_vary() -> None:
    encoder = nn.Identity()
    encoder.feature_dim = 8
    module = LinearProbe(encoder, 4, batchnorm=True)
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) / 1000 + 0.5
    exact = features.double()
    exact = (exact - exact.mean(0)) / (exact.var(0, unbiased=False) + 1e-6).sqrt()  # MAE's epsilon
    torch.testing.assert_close(module.norm(features).double(), exact, rtol=1e-3, atol=1e-3)


def test_an_encoder_that_moved_is_no_result(
    command: Command, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearProbe, "train", nn.Module.train)  # so that batch-norm's statistics move
    with pytest.raises(RuntimeError, match="the frozen encoder changed"):
        command("--pretrained", encoder_file, "--out", tmp_path)
    assert not (tmp_path / "completed").exists()


@pytest.mark.parametrize("other", ["seed", "epoch", None])
def test_a_crop_is_augmented_by_seed_and_epoch(other: str | None) -> None:
    pixels = torch.randint(0, 256, (1, 16, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    for again in (False, True):
        settings = Linear(views=Views(size=8, resize=8, jitter=1.0), precision="fp32", seed=again and other == "seed")
        crops = Crops(pixels, np.arange(16), torch.arange(16), int(again and other == "epoch"))
        seen.append(ImageInputs(settings, Runtime(0, 1, 0, torch.device("cpu")))(crops)[0])
    assert torch.equal(*seen) == (other is None)


def test_a_classifier_file_holds_the_layer_and_the_class_names(tmp_path: Path) -> None:
    head = probe().heads[0]
    write_classifier(head, ("cat", "dog", "ü", "x"), tmp_path / "classifier.safetensors", {"encoder": "resnet8"})
    with safetensors.safe_open(tmp_path / "classifier.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("weight"), head.weight)
        assert torch.equal(file.get_tensor("bias"), head.bias)
        assert json.loads(file.metadata()["classes"]) == ["cat", "dog", "ü", "x"]
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(7)
    write_encoder(build_encoder("resnet8"), path, metadata={})
    return path


@pytest.fixture
def command(call: Callable[..., int]) -> Command:
    """lincls.py with short settings; its exit code."""
    common = ("--recipe", "lincls-quickstart", "--data", "digits", "--views.size", 8, "--views.resize", 8)
    short = ("--batch-size", 100, "--epochs", 2, "--optim.lr", 10, "--workers", 0, "--log-every", 1, "--hide-progress")
    return lambda *arguments: call("lincls.py", *common, *short, *arguments)


def test_it_resumes_to_the_bit_and_evaluate_repeats_the_last_figure(
    command: Command, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content, given = encoder_file.read_bytes(), ("--pretrained", encoder_file)
    assert command(*given, "--out", tmp_path / "straight") == 0
    steps = figures(tmp_path / "straight")["step"]
    assert command(*given, "--out", tmp_path / "twice", "--max-steps", steps - 2) == 0
    capsys.readouterr()
    assert command(*given, "--out", tmp_path / "twice") == 0
    assert f"from {steps - 2} to {steps}" in capsys.readouterr().out
    straight, twice = (load_file(tmp_path / name / "classifier.safetensors") for name in ("straight", "twice"))
    assert all(torch.equal(straight[key], twice[key]) for key in ("weight", "bias"))
    assert losses(tmp_path / "straight") == losses(tmp_path / "twice")
    assert len(losses(tmp_path / "twice")) == steps

    summary = figures(tmp_path / "straight")
    assert (summary["val_images"], summary["val_skipped"]) == (360, 0)
    assert summary["top1"] > 15  # of ten classes, with random features
    assert summary["encoder_sha256"] == figures(tmp_path / "twice")["encoder_sha256"]
    assert encoder_file.read_bytes() == content
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "straight").rglob("*"))
    assert command(*given, "--out", tmp_path / "straight", "--evaluate") == 0
    assert f"top-1 {summary['top1']:.2f}%, top-5 {summary['top5']:.2f}% of 360 images" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "straight").rglob("*")) == before


@pytest.mark.parametrize("tops", [(20.0, 90.0, 10.0), (20.0, 10.0, 90.0)])
def test_the_best_classifier_is_kept_beside_the_last(
    command: Command, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tops: tuple[float, ...]
) -> None:
    answers, weights = iter(tops), []

    def accuracies(self: ImageInputs, logits: Callable, images: object, heads: int) -> list[Accuracy]:
        weights.append(logits.__self__.heads[0].weight.detach().clone())
        return [Accuracy(next(answers), 100.0, 360, 0, torch.eye(10, dtype=torch.int64))]

    monkeypatch.setattr(ImageInputs, "accuracies", accuracies)
    assert command("--pretrained", encoder_file, "--val-every", 1, "--epochs", 3, "--out", tmp_path) == 0
    assert (figures(tmp_path)["top1_best"], figures(tmp_path)["top1"]) == (90.0, tops[-1])
    last, best = (load_file(tmp_path / f"{name}.safetensors")["weight"] for name in ("classifier", "classifier_best"))
    assert torch.equal(last, weights[-1])
    assert torch.equal(best, weights[tops.index(90.0)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--pretrained", "no/such/file"), "There is no file or folder no/such/file"),
        (("--pretrained", ""), "--pretrained"),  # the flag forgotten
        (("--pretrained", "README.md"), "no PyTorch file"),
        (("--pretrained", "random"), "encoder"),
        (("--evaluate",), "--evaluate-only found no classifier"),
        (("--encoder", "resnet20"), "does not fit the encoder resnet20"),
    ],
)
def test_a_wrong_encoder_is_one_sentence_and_exit_code_2(
    command: Command, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple, says: str
) -> None:
    given = arguments if "--pretrained" in arguments else ("--pretrained", encoder_file, *arguments)
    assert command("--out", tmp_path / "run", *given) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_run_of_one_encoder_does_not_go_on_with_another(
    command: Command, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command("--pretrained", encoder_file, "--max-steps", 1, "--out", tmp_path / "run") == 0
    torch.manual_seed(8)
    write_encoder(build_encoder("resnet8"), tmp_path / "other.safetensors", metadata={})
    assert command("--pretrained", tmp_path / "other.safetensors", "--out", tmp_path / "run") == 2
    assert "holds a run with another encoder" in capsys.readouterr().err


def test_images_without_labels_are_refused(
    command: Command, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(4):
            Image.new("RGB", (20, 20)).save(tmp_path / split / f"{number}.png")
    assert command("--pretrained", encoder_file, "--data", tmp_path, "--out", tmp_path / "run") == 2
    assert "images without a label" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_a_batch_by_accumulation_is_the_same_batch(command: Command, tmp_path: Path, name: str) -> None:
    given = ("--pretrained", "random", "--encoder", "resnet8", "--optim.name", name, "--optim.lr", 2)
    for pieces in (1, 4):
        assert command(*given, "--accumulate", pieces, "--out", tmp_path / str(pieces)) == 0
    whole, by_parts = (load_file(tmp_path / pieces / "classifier.safetensors") for pieces in "14")
    torch.testing.assert_close(by_parts, whole, rtol=1e-4, atol=1e-5)
    assert figures(tmp_path / "1")["top1"] == figures(tmp_path / "4")["top1"]
