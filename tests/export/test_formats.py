"""Each format of `simsiam extract` comes back as the same features in the library that it is for."""

import json
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from simsiam.errors import UserError
from simsiam.export.detectron2 import detectron2_pickle
from simsiam.export.write import write_encoder
from simsiam.models.encoders import build_encoder

ABOUT = {"source": "run 7", "pixel_mean": "[0.5, 0.4, 0.3]", "pixel_std": "[0.2, 0.2, 0.1]"}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    encoder = build_encoder("resnet18", zero_init_residual=False)
    encoder(torch.randn(8, 3, 64, 64))  # moves the running statistics
    return encoder.eval()


def same_features(encoder, other):
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        return torch.equal(other.eval()(images), encoder(images))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm(tmp_path, encoder, suffix):
    path = tmp_path / f"e{suffix}"
    write_encoder(encoder, path, metadata=ABOUT, layout="timm")
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True))
    assert same_features(encoder, model)


def test_torchvision(tmp_path, encoder):
    write_encoder(encoder, tmp_path / "e.pth", metadata=ABOUT)
    model = torchvision.models.resnet18()
    model.load_state_dict(torch.load(tmp_path / "e.pth", weights_only=True), strict=False)
    model.fc = torch.nn.Identity()
    assert same_features(encoder, model)
    beside = json.loads((tmp_path / "e.pth.json").read_text())
    assert beside == {**ABOUT, "channel_order": "RGB", "encoder": "resnet18"}


def test_detectron2(tmp_path, encoder):
    """Its names come back to torchvision's by rules written down again, the other way round."""
    write_encoder(encoder, tmp_path / "e.pkl", metadata=ABOUT)
    content = pickle.loads((tmp_path / "e.pkl").read_bytes())
    assert content["matching_heuristics"] is True
    assert content["__author__"]
    state = {}
    for name, array in content["model"].items():
        stage, _, rest = name.partition(".")
        rest = rest.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        for number in "123":
            rest = rest.replace(f"conv{number}.norm", f"bn{number}")
        state[rest if stage == "stem" else f"layer{int(stage[3:]) - 1}.{rest}"] = torch.from_numpy(array)
    other = build_encoder("resnet18")
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert same_features(encoder, other)
    config = json.loads((tmp_path / "e.pkl.json").read_text())["detectron2"]
    assert config["MODEL.PIXEL_MEAN"] == [127.5, 102.0, 76.5]
    assert (config["MODEL.RESNETS.DEPTH"], config["MODEL.RESNETS.STRIDE_IN_1X1"], config["INPUT.FORMAT"]) == (
        18, False, "RGB",
    )  # fmt: skip


def test_a_resnet50_has_265_tensors_for_detectron2():
    """53 convolutions, each with a norm of four."""
    content = pickle.loads(detectron2_pickle(build_encoder("resnet50").state_dict(), {}))
    assert len(content["model"]) == 53 * 5


def test_what_a_format_has_no_place_for_is_refused(tmp_path, encoder):
    with pytest.raises(UserError, match="7x7"):
        write_encoder(build_encoder("resnet20"), tmp_path / "e.pkl", metadata={})
    with pytest.raises(UserError, match=r"Detectron2 has no name for the tensor 'layer5\.0"):
        detectron2_pickle({"conv1.weight": torch.empty(64, 3, 7, 7), "layer5.0.conv1.weight": torch.empty(1)}, {})
    with pytest.raises(UserError, match="timm has no model cifar_resnet18"):
        write_encoder(build_encoder("cifar_resnet18"), tmp_path / "e.pth", metadata={}, layout="timm")
    with pytest.raises(UserError, match=r"end in \.pkl"):
        write_encoder(encoder, tmp_path / "e.pth", metadata={}, layout="detectron2")
    assert list(tmp_path.iterdir()) == []
