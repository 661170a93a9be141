import argparse
import pickle
import subprocess
import sys

import pytest
import torch
import torchvision

from simsiam.commands import extract
from simsiam.errors import UserError
from simsiam.export.read import read_encoder
from simsiam.export.write import encoder_hash


def call(*words):
    parser = argparse.ArgumentParser()
    extract.add_arguments(parser)
    extract.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def weights(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def test_extract_writes_reports_and_says_where_it_came_from(tmp_path, weights, capsys):
    call(weights, tmp_path / "ours.safetensors")
    found = read_encoder(tmp_path / "ours.safetensors")
    assert found.info["source"] == str(weights)
    assert found.info["encoder"] == "resnet18"
    printed = capsys.readouterr().out
    assert encoder_hash(found.encoder) in printed
    assert "2 unexpected (fc.weight, fc.bias)" in printed
    assert str(tmp_path / "ours.safetensors") in printed


def test_extract_to_pth_is_torchvisions_own_file_without_fc(tmp_path, weights):
    call(weights, tmp_path / "ours.pth")
    theirs = torch.load(weights)
    ours = torch.load(tmp_path / "ours.pth")
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


def test_extract_turns_a_paddle_file_into_torchvisions(tmp_path, weights):
    theirs = torch.load(weights)
    names = {"running_mean": "_mean", "running_var": "_variance"}
    arrays = {}
    for key, tensor in theirs.items():
        start, _, last = key.rpartition(".")
        arrays[f"encoder.{start}.{names.get(last, last)}"] = tensor.numpy()
    (tmp_path / "theirs.pdparams").write_bytes(pickle.dumps(arrays))
    call(tmp_path / "theirs.pdparams", tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")
    assert len(ours) == 120
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


def test_extract_with_the_wrong_encoder_writes_nothing(tmp_path, weights):
    with pytest.raises(UserError, match="looks like resnet18"):
        call(weights, tmp_path / "ours.pth", "--encoder", "resnet50")
    assert not (tmp_path / "ours.pth").exists()


def test_help_does_not_import_torch():
    code = "import sys, simsiam.commands.extract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
