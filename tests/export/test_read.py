import pickle
import warnings

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
import torchvision
from torch import nn

from simsiam.errors import UserError
from simsiam.export.names import encoder_names, official_to_ours, ours_to_official
from simsiam.export.read import load_encoder, read_encoder
from simsiam.export.state import read_state
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import predictor, projector

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class Official(nn.Module):
    """The published architecture: a torchvision ResNet with the projector as fc, its last Linear with a frozen bias."""

    def __init__(self, dim=16, hidden=4):
        super().__init__()
        self.encoder = torchvision.models.resnet18(num_classes=dim, zero_init_residual=True)
        width, last = self.encoder.fc.in_features, self.encoder.fc
        last.bias.requires_grad = False
        self.encoder.fc = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            last, nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )


def lived_in(model):
    """Statistics and scales as after training, so that a lost tensor shows in the features."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def under(prefix, module):
    return {prefix + key: tensor for key, tensor in module.state_dict().items()}


@torch.inference_mode()
def same(encoder, features):
    assert not encoder.training
    torch.testing.assert_close(encoder(IMAGES), features)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    model = lived_in(Official())
    path = tmp_path_factory.mktemp("official") / "checkpoint_0099.pth.tar"
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict()
    content = {"epoch": 100, "arch": "resnet18", "state_dict": under("module.", model), "optimizer": optimiser}
    torch.save(content, path)
    return model, path


@pytest.fixture(scope="module")
def backbone():
    encoder = lived_in(build_encoder("resnet20"))
    with torch.inference_mode():
        return encoder, encoder(IMAGES)


def test_official_checkpoint_gives_the_official_features(official):
    model, path = official
    found = read_encoder(path)
    trunk = nn.Sequential(*list(model.encoder.children())[:-1], nn.Flatten())
    with torch.inference_mode():
        same(found.encoder, trunk(IMAGES))
    assert found.info["epoch"] == "100"
    assert not found.report.missing
    assert "fc.6.bias" in found.report.unexpected
    assert "\n" not in str(found.report)


def test_official_checkpoint_gives_the_official_z_and_p(official):
    model, path = official
    ours = nn.ModuleDict(
        {"encoder": build_encoder("resnet18"), "projector": projector(512, 512, 16), "predictor": predictor(16, 4)}
    ).eval()
    ours.load_state_dict(official_to_ours(read_state(path)[0]), strict=True)
    with torch.inference_mode():
        z = ours["projector"](ours["encoder"](IMAGES))
        torch.testing.assert_close(z, model.encoder(IMAGES))
        torch.testing.assert_close(ours["predictor"](z), model.predictor(model.encoder(IMAGES)))


def test_official_names_there_and_back_keep_z(official):
    model, path = official
    again = Official().eval()
    back = ours_to_official(official_to_ours(read_state(path)[0]))
    again.load_state_dict({key.removeprefix("module."): tensor for key, tensor in back.items()}, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(again.encoder(IMAGES), model.encoder(IMAGES))


def test_official_to_ours_refuses_a_mere_encoder(backbone):
    with pytest.raises(UserError, match=r"no official SimSiam checkpoint"):
        official_to_ours(under("encoder.", backbone[0]))


@pytest.mark.parametrize(
    ("prefix", "nest"),
    [("", None), ("module.", "state_dict"), ("_orig_mod.", "model"), ("module._orig_mod.", None), ("encoder.", None),
     ("encoder.module.", None), ("module.encoder.", "state_dict"), ("encoder._orig_mod.", None), ("encoder_q.", None),
     ("module.encoder_q.", "state_dict"), ("backbone.", "state_dict"), ("module.backbone.", "model"),
     ("module.base_encoder.", "state_dict"), ("encoder_q.0.", "state_dict"), ("base_encoder.0.", None), ("0.", None),
     ("online_network.encoder.", "state_dict"), ("online_encoder.net.", None), ("model.backbone.", "state_dict")],
)  # fmt: skip
def test_wrappers_and_nests_come_off(tmp_path, backbone, prefix, nest):
    encoder, features = backbone
    state = {**under(prefix, encoder), "module.predictor.0.weight": torch.ones(2)}
    torch.save({nest: state, "epoch": 3} if nest else state, tmp_path / "x.pth")
    same(load_encoder(tmp_path / "x.pth"), features)


def test_moco_takes_the_query_encoder_not_the_key_encoder(tmp_path, backbone):
    encoder, features = backbone
    state = under("module.encoder_k.", build_encoder("resnet20")) | under("module.encoder_q.", encoder)
    torch.save(
        {"arch": "resnet20", "state_dict": state | {"module.queue": torch.ones(4, 8)}}, tmp_path / "moco.pth.tar"
    )
    found = read_encoder(tmp_path / "moco.pth.tar")
    same(found.encoder, features)
    assert "queue" in found.report.unexpected


def as_sequential(encoder, stem):
    """The names that `nn.Sequential(*list(resnet.children())[:-1])` gives, where conv1 and bn1 are its first two."""
    places = {name: str(place) for place, (name, _) in enumerate(encoder.named_children())}
    assert [places[name] for name in ("conv1", "bn1", "layer1")] == ["0", "1", stem]
    named = (key.partition(".") for key in encoder.state_dict())
    return {f"{places[child]}.{rest}": encoder.state_dict()[f"{child}.{rest}"] for child, _, rest in named}


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
@pytest.mark.parametrize(("name", "stem"), [("resnet20", "3"), ("resnet18", "4"), ("cifar_resnet18", "4")])
def test_lightly_numbers_the_children(tmp_path, prefix, name, stem):
    encoder = lived_in(build_encoder(name))
    trunk = nn.Sequential(*list(encoder.children())[:-1])
    keys = {prefix + key: tensor for key, tensor in as_sequential(encoder, stem).items()}
    assert set(keys) == set(under(prefix, trunk))
    head = {"projection_head.layers.0.weight": torch.ones(2), "prediction_head.layers.1.bias": torch.ones(2)}
    torch.save({"state_dict": keys | head}, tmp_path / "lightly.ckpt")
    found = read_encoder(tmp_path / "lightly.ckpt")
    assert found.encoder.encoder_name == name
    assert set(found.report.unexpected) == set(head)
    with torch.inference_mode():
        same(found.encoder, trunk(IMAGES).flatten(1))


def test_lightlys_own_resnet_has_its_stages_elsewhere(tmp_path):
    encoder = lived_in(build_encoder("cifar_resnet18"))
    moved = {"conv1": "0", "bn1": "1", "layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}
    state = {}
    for key, tensor in encoder.state_dict().items():
        child, _, rest = key.replace("downsample", "shortcut").partition(".")
        state[f"backbone.{moved[child]}.{rest}"] = tensor
    torch.save(state, tmp_path / "lightly.pth")
    found = read_encoder(tmp_path / "lightly.pth")
    assert found.encoder.encoder_name == "cifar_resnet18"
    with torch.inference_mode():
        same(found.encoder, encoder(IMAGES))


def test_shortcuts_of_pytorch_cifar_are_downsample(tmp_path):
    encoder = lived_in(build_encoder("cifar_resnet18"))
    state = {key.replace("downsample", "shortcut"): tensor for key, tensor in under("module.", encoder).items()}
    torch.save({"net": state, "acc": 95.4}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match="no tensors by name"):
        load_encoder(tmp_path / "ckpt.pth")  # `net` is no nest that we know
    torch.save(state | {"module.linear.weight": torch.ones(10, 512)}, tmp_path / "ckpt.pth")
    found = read_encoder(tmp_path / "ckpt.pth")
    with torch.inference_mode():
        same(found.encoder, encoder(IMAGES))


def test_what_stands_beside_the_encoder_never_takes_its_place(tmp_path, backbone):
    encoder, features = backbone
    others = under("momentum_encoder.", build_encoder("resnet20")) | {"conv1.weight": torch.ones(16, 3, 3, 3)}
    torch.save(under("encoder.", encoder) | others, tmp_path / "x.pth")
    same(load_encoder(tmp_path / "x.pth"), features)


def test_names_come_off_no_further_than_the_encoders_own(tmp_path):
    torch.manual_seed(0)
    encoder = nn.Sequential()
    encoder.encoder = nn.Linear(2, 2)
    assert encoder_names(under("encoder.", encoder), encoder.state_dict().keys()).keys() == encoder.state_dict().keys()
    assert encoder_names(encoder.state_dict(), encoder.state_dict().keys()).keys() == encoder.state_dict().keys()


def test_torchvision_file_of_old_without_batch_counters(tmp_path):
    model = lived_in(torchvision.models.resnet18())
    torch.save({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, tmp_path / "resnet18.pth")
    found = read_encoder(tmp_path / "resnet18.pth")
    model.fc = nn.Identity()
    same(found.encoder, model(IMAGES))
    assert found.report.unexpected == ("fc.weight", "fc.bias")


@pytest.mark.parametrize(
    ("arch", "name"), [("resnet18", None), ("resnet18", "timm:resnet18"), ("resnet18d", "timm:resnet18d")]
)
def test_timm_file(tmp_path, arch, name):
    model = lived_in(timm.create_model(arch))
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    encoder = load_encoder(tmp_path / "timm.pth", name=name)
    model.reset_classifier(0)
    same(encoder, model(IMAGES))


class Malice:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def test_malicious_pickle_is_refused_and_not_run(tmp_path, backbone):
    torch.save({"state_dict": backbone[0].state_dict(), "x": Malice(tmp_path / "canary")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth holds the Python object \S*open .* not loaded"):
        load_encoder(tmp_path / "x.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.pth", b""), ("x.pth", b"<html>404</html>"), ("x.pth", b"PK\x03\x04 cut"), ("x.safetensors", b"PK\x03\x04 cut"),
     ("x.safetensors", b"")],
)  # fmt: skip
def test_damaged_file_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="download it again") as error:
        load_encoder(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        load_encoder(tmp_path / "absent")
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no tensors by name"):
        load_encoder(tmp_path / "x.pth")
    with pytest.raises(UserError, match="neither encoder"):
        load_encoder(tmp_path)


def save_checkpoint(run, step, encoder):
    state = {"model": under("encoder.", encoder) | under("predictor.", predictor(4, 2)), "step": torch.tensor(step)}
    state["optimizer"] = {"0.momentum_buffer": torch.zeros(4)}
    with warnings.catch_warnings(action="ignore"):  # torch warns of a lone process
        dcp.save(state, checkpoint_id=run / "checkpoints" / f"step_{step:08d}", no_dist=True)


@pytest.fixture
def run_folder(tmp_path, backbone):
    save_checkpoint(tmp_path, 9, build_encoder("resnet20"))
    save_checkpoint(tmp_path, 10, backbone[0])
    (tmp_path / "checkpoints" / "step_00000011").mkdir()  # killed before it was whole
    (tmp_path / "config.yaml").write_text(
        "encoder: resnet20\nviews:\n  mean: [0.5, 0.5, 0.5]\n  std: [0.2, 0.2, 0.2]\n"
    )
    return tmp_path


def test_run_folder_gives_its_newest_whole_checkpoint(run_folder, backbone):
    with warnings.catch_warnings(action="error"):
        found = read_encoder(run_folder)
    same(found.encoder, backbone[1])
    assert found.info["step"] == "10"
    assert found.info["pixel_mean"] == "[0.5, 0.5, 0.5]"
    assert not found.report.unexpected


def test_checkpoint_folder_is_read_as_it_is(run_folder, backbone):
    same(load_encoder(run_folder / "checkpoints" / "step_00000010"), backbone[1])


def test_run_folder_without_config_is_recognised(run_folder, backbone):
    (run_folder / "config.yaml").unlink()
    same(load_encoder(run_folder), backbone[1])


def test_malicious_checkpoint_metadata_is_refused_and_not_run(run_folder):
    metadata = run_folder / "checkpoints" / "step_00000010" / ".metadata"
    metadata.write_bytes(pickle.dumps(Malice(run_folder / "canary")))
    with pytest.raises(UserError, match="could run code"):
        load_encoder(run_folder)
    assert not (run_folder / "canary").exists()


def test_garbled_checkpoint_metadata_is_one_sentence(run_folder):
    metadata = run_folder / "checkpoints" / "step_00000010" / ".metadata"
    for content in (b"", b"\x80\x04garbage", pickle.dumps({"a": 1}), metadata.read_bytes()[:300]):
        metadata.write_bytes(content)
        with pytest.raises(UserError, match=r"step_00000010 cannot be read") as error:
            load_encoder(run_folder)
        assert "\n" not in str(error.value)


def test_damaged_checkpoint_names_it_and_the_remedy(run_folder):
    data = next((run_folder / "checkpoints" / "step_00000010").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_00000010 cannot be read .* older step_"):
        load_encoder(run_folder)
