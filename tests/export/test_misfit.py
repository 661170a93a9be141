"""Files that do not hold the encoder that was asked for: what the one sentence says of them."""

import pytest
import timm
import torch

from simsiam.errors import UserError
from simsiam.export.read import load_encoder, match_state
from simsiam.export.write import write_encoder
from simsiam.models.encoders import build_encoder


def under(prefix, module):
    return {prefix + key: tensor for key, tensor in module.state_dict().items()}


def test_file_of_no_known_resnet_asks_for_the_name(tmp_path):
    state = timm.create_model("resnet18d").state_dict()
    torch.save({"arch": "resnet18d", "state_dict": state}, tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"timm\.pth .*'resnet18d'.* --encoder timm:resnet18d\.$"):
        load_encoder(tmp_path / "timm.pth")
    torch.save({"arch": "mine", "state_dict": {"a.weight": torch.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth .*'mine'.* by its tensors: give its name, such as .* timm:NAME\.$"):
        load_encoder(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("given", "depth"),
    [("resnet18", "resnet34"), ("resnet34", "resnet18"), ("resnet50", "resnet18"), ("resnet50", "resnet101"),
     ("resnet56", "resnet20"), ("resnet20", "resnet56"), ("resnet18", "cifar_resnet18"), ("cifar_resnet18", "resnet18"),
     ("resnet18", "resnet20"), ("resnet50", "wide_resnet50_2")],
)  # fmt: skip
def test_wrong_depth_says_what_the_file_looks_like(tmp_path, given, depth):
    state = under("module.encoder.", build_encoder(depth)) | {"module.encoder.fc.0.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"does not fit the encoder {given}, .*looks like {depth}, "):
        load_encoder(tmp_path / "x.pth", name=given)


def test_misfit_says_what_the_file_calls_itself(tmp_path):
    write_encoder(build_encoder("resnet20"), tmp_path / "e.safetensors", metadata={})
    with pytest.raises(UserError, match=r"e\.safetensors, which calls its encoder resnet20, .* looks like resnet20"):
        load_encoder(tmp_path / "e.safetensors", name="resnet56")


def test_name_that_contradicts_the_file_is_refused_though_all_tensors_fit(tmp_path):
    """A blurred pooling has no tensors: only its name tells it from a plain ResNet."""
    write_encoder(build_encoder("timm:resnetblur18"), tmp_path / "e.safetensors", metadata={})
    with pytest.raises(UserError, match="holds the encoder timm:resnetblur18, .* leave --encoder resnet18 out"):
        load_encoder(tmp_path / "e.safetensors", name="resnet18")
    assert load_encoder(tmp_path / "e.safetensors", name="timm:resnetblur18").encoder_name == "timm:resnetblur18"


@pytest.mark.parametrize(
    # timm's resnet18 is torchvision's; a name that is wrong by the tensors, or unknown, has no say.
    ("said", "holds", "given"),
    [("resnet18", "resnet18", "timm:resnet18"), ("timm:resnet18.a1_in1k", "resnet18", "resnet18"),
     ("resnet18", "cifar_resnet18", "cifar_resnet18"), ("timm:gone", "resnet20", "resnet20")],
)  # fmt: skip
def test_name_given_stands_where_the_file_does_not_really_contradict(tmp_path, said, holds, given):
    torch.save({"arch": said, "state_dict": build_encoder(holds).state_dict()}, tmp_path / "x.pth")
    assert load_encoder(tmp_path / "x.pth", name=given).encoder_name == given


def without(state, start):
    return {key: tensor for key, tensor in state.items() if not key.startswith(start)}


@pytest.mark.parametrize("name", [None, "resnet50", "resnet18"])
def test_cut_file_says_which_depth_is_cut(tmp_path, name):
    state = without(build_encoder("resnet50").state_dict(), ("bn1.weight", "layer3.2.conv1"))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path / "x.pth", name=name)
    assert "its blocks per stage 3, 4, 6, 3 are those of resnet50" in str(error.value)
    assert "missing (bn1.weight, layer3.2.conv1.weight)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "lost", "words"),
    [("resnet101", ("layer4.", "layer3.2."), "stage 3, 4, 22 are nearest to those of resnet101, 3, 4, 23, 3"),
     ("resnet56", ("layer3.",), "stage 9, 9 are nearest to those of resnet56, 9, 9, 9"),
     ("cifar_resnet18", ("bn1.",), "stage 2, 2, 2, 2 are those of cifar_resnet18, but of its tensors 4 are missing")],
)  # fmt: skip
def test_cut_file_without_whole_stages_says_the_nearest(tmp_path, name, lost, words):
    torch.save(without(build_encoder(name).state_dict(), lost), tmp_path / "x.pth")
    with pytest.raises(UserError, match=words):
        load_encoder(tmp_path / "x.pth")


def test_wrong_kind_of_block_says_what_the_file_looks_like(tmp_path):
    torch.save({"arch": "resnet18", "state_dict": build_encoder("resnet50").state_dict()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="looks like resnet50"):
        load_encoder(tmp_path / "x.pth")


def test_a_lost_tensor_is_an_error_with_its_name(tmp_path):
    state = build_encoder("resnet20").state_dict()
    del state["layer3.0.bn2.running_mean"]
    torch.save({"arch": "resnet20", "state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 missing \(layer3\.0\.bn2\.running_mean\)"):
        load_encoder(tmp_path / "x.pth")


def test_nothing_matched_is_an_error(tmp_path):
    torch.save({"blocks.0.attn.weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth does not fit the encoder resnet18.*blocks\.0\.attn\.weight"):
        load_encoder(tmp_path / "x.pth", name="resnet18")
    with pytest.raises(UserError, match="not one of its 0 tensors"):
        match_state(build_encoder("resnet18"), {})
