"""Cached features train the classifier that images would, are read by any number of ranks, and survive a cut."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from simsiam.data.image_set import BadImage
from simsiam.data.plan import Plan
from simsiam.data.sources.digits import digits
from simsiam.data.subsets import evenly_spaced
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation import feature_cache
from simsiam.evaluation.accuracy import Accuracy
from simsiam.evaluation.feature_cache import FeatureLoader, cache_features, evaluate_features
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision
from tests.ranks import run_ranks

DIGITS = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
PROBE = ("--recipe", "lincls-quickstart", *DIGITS, "--pretrained", "random", "--encoder", "resnet8", "--epochs", 2)
PLAIN = ("--views.scale", "[1,1]", "--views.ratio", "[1,1]", "--views.flip", 0, "--batch-size", 128)


class Torn:
    """Digits of which one cannot be read."""

    def __init__(self, count: int, bad: int) -> None:
        self._images, self._bad = evenly_spaced(digits("val"), count), bad
        self.labels, self.classes, self.name = self._images.labels, self._images.classes, self._images.name

    def __len__(self) -> int:
        return len(self._images)

    def read(self, sample: int) -> torch.Tensor:
        if sample == self._bad:
            raise BadImage("torn")
        return self._images.read(sample)


def cached(images: Torn, folder: Path) -> tuple[np.ndarray, torch.Tensor, Accuracy]:
    runtime = Runtime(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    torch.manual_seed(0)
    encoder, views = build_encoder("resnet8").eval(), Views(size=16, resize=16)
    features = cache_features(encoder, images, views, runtime, folder, Precision("fp32", runtime.device))
    weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    (accuracy,) = evaluate_features(lambda x: (x.float() @ weight)[None], features, runtime, batch=4)
    return features.labels, features.rows(np.arange(len(features))), accuracy


def test_features_do_not_depend_on_who_computed_or_who_reads_them(tmp_path: Path) -> None:
    images = Torn(22, bad=5)
    labels, rows, accuracy = run_ranks(1, cached, images, tmp_path / "1")[0]
    assert labels.tolist() == np.delete(images.labels, 5).tolist()
    assert (accuracy.images, accuracy.skipped) == (21, 1)
    for ranks in (2, 3):
        for of_rank in run_ranks(ranks, cached, images, tmp_path / str(ranks)):
            assert of_rank[0].tolist() == labels.tolist()
            torch.testing.assert_close(of_rank[1], rows, rtol=0, atol=1e-3)
            assert of_rank[2] == accuracy
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "3").iterdir()}
    assert run_ranks(1, cached, images, tmp_path / "3")[0][2] == accuracy  # three files, read by one rank
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "3").iterdir()} == before


def test_features_of_another_encoder_or_set_are_computed_anew(tmp_path: Path) -> None:
    first = run_ranks(1, cached, Torn(22, bad=5), tmp_path)[0]
    other = run_ranks(1, cached, Torn(20, bad=5), tmp_path)[0]
    assert (len(first[0]), len(other[0])) == (21, 19)


@pytest.mark.parametrize("other", ["weights", "precision", "size", "mean", None])
def test_only_what_is_of_the_same_encoder_precision_and_crop_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str | None
) -> None:
    computed, extract, cpu = [], feature_cache.extract_features, torch.device("cpu")
    monkeypatch.setattr(feature_cache, "extract_features", lambda *a, **k: (computed.append(1), extract(*a, **k))[1])
    for again in (False, True):
        torch.manual_seed(again and other == "weights")
        views = Views(
            size=8 if again and other == "size" else 16, mean=(0.4, 0.5, 0.5 if again and other == "mean" else 0.4)
        )
        precision = Precision("bf16" if again and other == "precision" else "fp32", cpu)
        encoder = build_encoder("resnet8").eval()
        cache_features(encoder, Torn(6, bad=5), views, Runtime(0, 1, 0, cpu), tmp_path, precision)
    assert len(computed) == (1 if other is None else 2)


def test_a_rank_that_had_finished_before_a_cut_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_ranks(2, cached, Torn(22, bad=5), tmp_path)[0]
    (tmp_path / "about.json").unlink()
    (tmp_path / "01-of-02.index.npz").unlink()
    (tmp_path / "01-of-02.npy").write_bytes(b"cut off")
    computed, extract = tmp_path / "computed", feature_cache.extract_features
    computed.mkdir()

    def noted(*arguments, **options):
        (computed / str(dist.get_rank())).touch()
        return extract(*arguments, **options)

    monkeypatch.setattr(feature_cache, "extract_features", noted)
    again = run_ranks(2, cached, Torn(22, bad=5), tmp_path)[0]
    assert [path.name for path in computed.iterdir()] == ["1"]
    assert torch.equal(again[1], whole[1])


def test_the_loader_gives_the_rows_of_the_plan(tmp_path: Path) -> None:
    images, runtime = Torn(22, bad=5), Runtime(0, 1, 0, torch.device("cpu"))
    encoder, precision = build_encoder("resnet8").eval(), Precision("fp32", runtime.device)
    features = cache_features(encoder, images, Views(size=16, resize=16), runtime, tmp_path, precision)
    plan = Plan(len(features), 8, seed=3)
    for step, pieces in enumerate(FeatureLoader(features, plan, 2).steps(1, 4), start=1):
        numbers = np.concatenate([crops.samples for crops in pieces])
        assert numbers.tolist() == plan.batch(step).tolist()
        assert [len(crops.labels) for crops in pieces] == [4, 4]
        for crops in pieces:
            assert torch.equal(crops.images, features.rows(crops.samples))
            assert crops.labels.tolist() == features.labels[crops.samples].tolist()


def test_without_augmentation_it_agrees_with_training_on_images(call: Callable[..., int], tmp_path: Path) -> None:
    for name, more in (("images", ()), ("features", ("--cache-features",))):
        given = (*PROBE, *PLAIN, *more, "--optim.lr", 2, "--out", tmp_path / name)
        assert call("lincls.py", *given) == 0
    a, b = (load_file(tmp_path / name / "classifier.safetensors") for name in ("images", "features"))
    largest = a["weight"].abs().max()
    assert (a["weight"] - b["weight"]).abs().max() < 2e-3 * largest  # features are kept in float16
    images, features = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("images", "features"))
    assert abs(images["top1"] - features["top1"]) <= 100 * 2 / 360
    assert (images["protocol"], "variant" in features["protocol"]) == ("linear", True)
    assert images["encoder_sha256"] == features["encoder_sha256"]


def test_a_sweep_on_cached_features_goes_on_to_the_bit(call: Callable[..., int], tmp_path: Path) -> None:
    given = (*PROBE, *PLAIN, "--cache-features", "--sweep", "lr=3,30", "--batchnorm")
    assert call("lincls.py", *given, "--out", tmp_path / "straight") == 0
    assert call("lincls.py", *given, "--out", tmp_path / "twice", "--max-steps", 5) == 0
    assert call("lincls.py", *given, "--out", tmp_path / "twice") == 0
    a, b = (load_file(tmp_path / name / "classifier.safetensors") for name in ("straight", "twice"))
    assert all(torch.equal(a[key], b[key]) for key in a)
