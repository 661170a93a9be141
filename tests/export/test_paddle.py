"""`.pdparams` files as Paddle and PASSL write them: pickles of numpy arrays, which need no Paddle to be made."""

import codecs
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from simsiam.errors import UserError
from simsiam.export.read import read_encoder
from simsiam.export.state import read_state
from simsiam.models.encoders import build_encoder

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(3)
    encoder = build_encoder("resnet20", zero_init_residual=False)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return encoder.eval()


def paddle_state(encoder, prefix=""):
    """The same network in Paddle, which has no batch counters, and a Linear, whose weight it holds transposed."""
    state = {}
    for key, tensor in encoder.state_dict().items():
        key = prefix + key.replace("running_mean", "_mean").replace("running_var", "_variance")
        if not key.endswith("num_batches_tracked"):
            state[key] = tensor.numpy()
    return state | {f"{prefix}fc.weight": np.ones((64, 10), np.float32)}


class PaddleTensor:
    """Pickles as a tensor inside a nested object does: tuple((name, array))."""

    def __init__(self, name, array):
        self.name, self.array = name, array

    def __reduce__(self):
        return tuple, ((self.name, self.array),)


def saved_by_paddle(state):
    return state | {"StructuredToParameterName@@": {key: f"param_{n}" for n, key in enumerate(state)}}


def saved_by_passl(state):
    return {"epoch": 7, "state_dict": state, "optimizer": {"LR_Scheduler": {"last_lr": 0.1}}, "lr_sheduer": {}}


def saved_as_tensors(state):
    return OrderedDict((key, PaddleTensor(key, array)) for key, array in state.items())


@pytest.mark.parametrize("prefix", ["", "encoder.", "encoder_q.0.", "base_encoder.0.", "backbone."])
@pytest.mark.parametrize("save", [saved_by_paddle, saved_by_passl, saved_as_tensors])
def test_encoder_of_a_paddle_file(tmp_path, encoder, prefix, save):
    path = tmp_path / "epoch_7.pdparams"
    path.write_bytes(pickle.dumps(save(paddle_state(encoder, prefix)), protocol=4))
    found = read_encoder(path)
    assert not found.report.missing
    assert found.report.unexpected == ("fc.weight",)
    with torch.inference_mode():
        torch.testing.assert_close(found.encoder(IMAGES), encoder(IMAGES))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_gives_the_same_tensors(tmp_path, encoder, protocol):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(saved_by_passl(paddle_state(encoder)), protocol=protocol))
    tensors, info = read_state(tmp_path / "x.pdparams")
    assert info["epoch"] == "7"
    assert torch.equal(tensors["layer3.0.bn1.running_var"], encoder.layer3[0].bn1.running_var)


def test_names_of_numpy_1_are_read(tmp_path):
    content = pickle.dumps({"conv1.weight": np.ones(3, np.float32)}, protocol=2)
    (tmp_path / "x.pdparams").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(read_state(tmp_path / "x.pdparams")[0]["conv1.weight"], torch.ones(3))


class Malice:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("function", [open, eval])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, encoder, function):
    canary = tmp_path / "canary"
    arguments = (str(canary), "w") if function is open else (f"open({str(canary)!r}, 'w')",)
    content = saved_by_passl(paddle_state(encoder)) | {"x": Malice(function, *arguments)}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"x\.pdparams holds the Python object \S+\.(open|eval) .* not loaded"):
        read_encoder(tmp_path / "x.pdparams")
    assert not canary.exists()


def test_codecs_are_not_looked_up(tmp_path):
    content = {"x": Malice(codecs.encode, "abc", "no_such_codec"), "conv1.weight": np.ones(3)}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content))
    assert set(read_state(tmp_path / "x.pdparams")[0]) == {"conv1.weight"}


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", pickle.dumps({"a": np.ones(9)})[:-20], b"\x80\x04]."])
def test_damaged_or_empty_file_is_one_sentence(tmp_path, content):
    (tmp_path / "x.pdparams").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pdparams (is no PaddlePaddle file|holds no tensors by name)") as error:
        read_encoder(tmp_path / "x.pdparams")
    assert "\n" not in str(error.value)
