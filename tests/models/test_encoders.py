import pytest
import torch
import torchvision

from simsiam.errors import UserError
from simsiam.models.cifar_resnet import ThinResNet, stem_resnet
from simsiam.models.encoders import build_encoder, list_encoders, recognise


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_resnet50_backbone_has_the_published_size():
    encoder = build_encoder("resnet50")
    assert count(encoder) == 23_508_032
    assert (encoder.feature_dim, encoder.encoder_name) == (2048, "resnet50")


def test_cifar_resnet18_with_ten_classes_has_the_published_size():
    assert count(stem_resnet(18)) == 11_173_962


@pytest.mark.parametrize(
    # He et al. table 6 rounds to millions; the exact numbers are theirs plus the option B shortcuts.
    ("depth", "millions"),
    [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)],
)
def test_thin_resnets_have_the_sizes_of_he_et_al(depth, millions):
    assert count(ThinResNet(depth)) / 1e6 == pytest.approx(millions, rel=0.03)


def test_thin_resnet_has_the_tensors_of_repdistiller():
    keys = set(ThinResNet(20).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer3.2.conv2.weight", "layer2.0.downsample.0.weight", "fc.bias"} <= keys
    assert not any(key.startswith("layer1.0.downsample") for key in keys)
    assert ThinResNet(20).state_dict()["layer3.0.downsample.0.weight"].shape == (64, 32, 1, 1)


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 64), ("cifar_resnet18", 32), ("cifar_resnet34", 32), ("resnet20", 32), ("resnet32", 32),
     ("timm:resnet18", 64), ("timm:mobilenetv3_small_050", 64)],
)  # fmt: skip
def test_encoder_gives_pooled_features_of_the_size_it_says(name, side):
    encoder = build_encoder(name).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, side, side)).shape == (2, encoder.feature_dim)
    assert encoder.encoder_name == name


def test_cifar_stem_is_drawn_by_the_rule_of_torchvisions_other_convolutions():
    torch.manual_seed(0)
    assert stem_resnet(18).conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_cifar_stem_keeps_the_resolution():
    encoder = build_encoder("cifar_resnet18")
    assert encoder.layer1(encoder.maxpool(encoder.conv1(torch.zeros(1, 3, 32, 32)))).shape == (1, 64, 32, 32)


def test_state_dict_is_torchvisions_without_fc():
    theirs = {k: v.shape for k, v in torchvision.models.resnet18().state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in build_encoder("resnet18").state_dict().items()} == theirs


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "cifar_resnet18", "timm:resnet18"])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_residual_reaches_every_family(name, zero):
    last = build_encoder(name, zero_init_residual=zero).layer1[0].bn2.weight
    assert bool((last == 0).all()) is zero


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet51", "resnet50"), ("timm:resnet18x", "timm:resnet18"), ("resnet18d", "timm:resnet18d"), ("", "timm:NAME"),
     ("timm:", "timm:")],
)  # fmt: skip
def test_unknown_name_is_one_sentence_with_the_nearest(name, hint):
    with pytest.raises(UserError) as error:
        build_encoder(name)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_list_holds_all_families_small_first():
    names = list_encoders()
    assert names[:5] == ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    assert {"resnext50_32x4d", "wide_resnet101_2", "cifar_resnet34", "resnet110"} <= set(names)


@pytest.mark.parametrize("name", ["resnet34", "resnext50_32x4d", "cifar_resnet18", "resnet56"])
def test_recognise_tells_relatives_apart_whatever_stands_beside(name):
    shapes = {key: tensor.shape for key, tensor in build_encoder(name).state_dict().items()}
    assert recognise({**shapes, "fc.weight": (7, 9), "queue": (3,)}) == name
    del shapes["layer1.0.bn1.weight"]
    assert recognise(shapes) is None
