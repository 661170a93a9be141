"""Settings, weights and figures from elsewhere: plain data, or one sentence."""

import json
import struct
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from simsiam.commands.report import run as report_command
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.subset_lists import listed
from simsiam.detection.trained import read_detector
from simsiam.evaluation.classifier import read_classifier
from simsiam.evaluation.ledger import read as read_ledger
from simsiam.export.read import read_encoder
from simsiam.export.state import read_state
from simsiam.models.encoders import build_encoder
from simsiam.run.record import read_run
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain
from tests.security import hostile
from tests.security.conftest import refused


def test_recipes(place, canary):
    words = ["--recipe", str(place / "x.yaml"), "--data", "x"]
    for name, data in hostile.hostile_yaml(canary).items():
        (place / "x.yaml").write_bytes(data)
        refused(
            lambda words=words: parse(Pretrain, words, recipe="imagenet-r50", prog="pretrain.py"),
            name,
            "x.yaml is not YAML",
        )


def test_settings_of_a_run_folder(place, canary):
    """A report leaves them out; an encoder file is read without them."""
    for name, data in hostile.hostile_yaml(canary).items():
        (place / "config.yaml").write_bytes(data)
        said = read_run(place).config
        assert said == {} or (name == "latin1" and said["method"] == {"name": "\ufffd"}), name
    (place / "encoder.safetensors").write_bytes(save({"conv1.weight": torch.zeros(1)}))
    assert read_state(place)[1] == {"path": str(place / "encoder.safetensors")}


def test_ordinary_settings_are_read(place):
    (place / "config.yaml").write_text(
        "# pretrain.py\nepochs: 3\nout: 'a: [b'\nmethod: &m {name: simsiam}\nagain: *m\n"
    )
    settings = {"epochs": 3, "out": "a: [b", "method": {"name": "simsiam"}, "again": {"name": "simsiam"}}
    assert read_run(place).config == settings


@pytest.mark.parametrize("reader", [read_encoder, read_classifier, read_detector])
def test_safetensors(place, reader):
    for name, data in hostile.hostile_safetensors().items():
        (place / "x.safetensors").write_bytes(data)
        refused(lambda: reader(place / "x.safetensors"), name, "x.safetensors")


def test_weights_that_are_no_numbers(place):
    state = build_encoder("resnet8").state_dict()
    (place / "x.safetensors").write_bytes(save(state))
    read_encoder(place / "x.safetensors", name="resnet8")
    for value in (float("nan"), float("inf")):
        state["bn1.running_var"][3] = value
        (place / "x.safetensors").write_bytes(save(state))
        refused(
            lambda: read_encoder(place / "x.safetensors", name="resnet8"), str(value), "not finite in bn1.running_var"
        )


TENSORS = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
FOREIGN = {
    "no json": "{",
    "deep": "[" * 100_000,
    "numbers": "1",
    "arguments": json.dumps({"encoder": "resnet18", "classes": ["a"], "arguments": {"__class__": "os.system"}}),
    "no mapping": json.dumps({"encoder": "resnet18", "classes": ["a"], "arguments": [1]}),
    "encoder": json.dumps({"encoder": "timm:hf-hub:somebody/something", "classes": ["a"], "arguments": {}}),
    "encoder of a number": json.dumps({"encoder": 3, "classes": ["a"], "arguments": {}}),
    "tensors": json.dumps({"encoder": "resnet18", "classes": ["a"], "arguments": {"head": "fpn"}}),
}


def test_what_detectors_and_classifiers_say_of_themselves(place):
    for name, said in FOREIGN.items():
        (place / "x.safetensors").write_bytes(save(TENSORS, {"detector": said}))
        refused(lambda: read_detector(place / "x.safetensors"), name)
        (place / "x.safetensors").write_bytes(
            save(TENSORS, {"classes": said if name in ("no json", "deep") else "[3]"})
        )
        refused(lambda: read_classifier(place / "x.safetensors"), name, "is no classifier")
    for name, tensors in {"bias": {"bias": torch.zeros(3)}, "weight": {"weight": torch.zeros(2)}}.items():
        (place / "x.safetensors").write_bytes(save(TENSORS | tensors, {"classes": '["a", "b"]'}))
        refused(lambda: read_classifier(place / "x.safetensors"), name, "do not go together")


def test_lists_of_images(place):
    images = ArrayImages(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.int64), ("a",), "x")
    bad = {
        "slashes": b"a/" * 500_000,
        "label of thousands of digits": b"x/0 " + b"9" * 4000,
        "climbing": b"../../etc/passwd",
        "zeros": b"\0" * 1000,
        "utf-16": "x/0".encode("utf-16"),
        "binary": bytes(range(256)) * 10,
    }
    for name, text in bad.items():
        refused(lambda: listed(images, "list.txt", text), name, "list.txt")  # noqa: B023, called at once


def test_lines_of_a_ledger(place, canary):
    whole = {"protocol": "linear", "encoder": "$(touch x)", "top1": 1.5}
    lines = [
        json.dumps(whole).encode(),
        b'{"a":' * 100_000,
        b"9" * 100_000,
        json.dumps({**whole, "top1": [1]}).encode(),
        json.dumps({**whole, "versions": "x"}).encode(),
        json.dumps({**whole, "encoder": {"class_path": "os.system"}}).encode(),
        b"\xff\xfe" * 100,
        hostile.gadgets(canary)["protocol 0"].replace(b"\n", b" "),
    ]
    (place / "results.jsonl").write_bytes(b"\n".join(lines))
    assert [result.top1 for result in read_ledger(place / "results.jsonl")] == [1.5]


ODD_NAMES = ("a\nb", "$(touch canary)", "`touch canary`", "; touch canary", "<script>alert(1)<", "a|b", "-rf", "\udcff")


def test_names_of_runs_are_text(place, canary, monkeypatch):
    """A report over folders of any name runs nothing, and its page has no markup of theirs."""
    monkeypatch.chdir(place)
    for name in ODD_NAMES:
        folder = place / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("# pretrain.py --recipe '<b>x</b>'\nmethod: {name: simsiam}\n")
        (folder / "summary.json").write_text(json.dumps({"state": "</td><script>alert(2)</script>", "loss": -0.5}))
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "verdict": "<script>alert(3)</script>"}\n')
        (folder / "curves.svg").symlink_to(canary)
    report_command(Namespace(paths=[str(place / "runs")], out=str(place / "x.html"), markdown=None, pictures=True))
    page = (place / "x.html").read_bytes().decode("utf-8", "replace")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert sorted(path.name for path in place.iterdir()) == ["runs", "x.html"]


def test_header_of_the_largest_size_that_is_not_there(place):
    (place / "x.safetensors").write_bytes(struct.pack("<Q", (1 << 64) - 1) + b"{")
    refused(lambda: read_encoder(place / "x.safetensors"), "header", "no whole safetensors file")
