import pytest
import torch
import torchvision
from safetensors import safe_open

from simsiam.errors import UserError
from simsiam.export.read import load_encoder, read_encoder
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    encoder = build_encoder("resnet20", zero_init_residual=False)
    encoder(torch.randn(8, 3, 32, 32))  # moves the running statistics
    return encoder.eval()


@pytest.mark.parametrize("file", ["e.safetensors", "new/folder/e.pth"])
def test_round_trip_gives_equal_features(tmp_path, encoder, file):
    write_encoder(encoder, tmp_path / file, metadata={"source": "run 7"})
    again = load_encoder(tmp_path / file)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(images), encoder(images))
    assert encoder_hash(again) == encoder_hash(encoder)
    written = {path.name for path in (tmp_path / file).parent.iterdir()}
    assert written == ({"e.safetensors"} if file == "e.safetensors" else {"e.pth", "e.pth.json"})


def test_safetensors_says_what_it_holds(tmp_path, encoder):
    write_encoder(encoder, tmp_path / "e.safetensors", metadata={"source": "run 7", "pixel_mean": "[0.5, 0.5, 0.5]"})
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        said = file.metadata()
    assert said == {
        "format": "pt",
        "source": "run 7",
        "pixel_mean": "[0.5, 0.5, 0.5]",
        "encoder": "resnet20",
        "channel_order": "RGB",
    }
    assert read_encoder(tmp_path / "e.safetensors").info["pixel_mean"] == "[0.5, 0.5, 0.5]"


def test_metadata_names_an_encoder_that_shapes_cannot(tmp_path):
    write_encoder(build_encoder("timm:resnet18d"), tmp_path / "e.safetensors", metadata={})
    assert load_encoder(tmp_path / "e.safetensors").encoder_name == "timm:resnet18d"


def test_pth_loads_into_torchvision_with_only_fc_missing(tmp_path):
    write_encoder(build_encoder("resnet18"), tmp_path / "e.pth", metadata={})
    state = torch.load(tmp_path / "e.pth", weights_only=True)
    missing, unexpected = torchvision.models.resnet18().load_state_dict(state, strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert not unexpected


def test_per_view_batchnorm_and_channels_last_leave_the_file_as_it_is(tmp_path):
    torch.manual_seed(2)
    encoder = build_encoder("resnet20")
    plain = encoder_hash(encoder)
    per_view_batchnorm(encoder, 2).to(memory_format=torch.channels_last)
    assert encoder_hash(encoder) == plain
    write_encoder(encoder, tmp_path / "e.safetensors", metadata={})
    assert encoder_hash(load_encoder(tmp_path / "e.safetensors")) == plain


def test_hash_sees_every_buffer_and_parameter(encoder):
    before, seen = encoder_hash(encoder), set()
    for tensor in (encoder.bn1.running_mean, encoder.bn1.num_batches_tracked, encoder.conv1.weight):
        with torch.no_grad():
            tensor += 1
            seen.add(encoder_hash(encoder))
            tensor -= 1
    assert len(seen - {before}) == 3


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, encoder, monkeypatch):
    target = tmp_path / "e.safetensors"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_encoder(encoder, target, metadata={})
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_other_suffix_and_impossible_folder_are_user_errors(tmp_path, encoder):
    with pytest.raises(UserError, match=r"\.safetensors or \.pth or \.pkl"):
        write_encoder(encoder, tmp_path / "e.onnx", metadata={})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_encoder(encoder, tmp_path / "file" / "e.pth", metadata={})
