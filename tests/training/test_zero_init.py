"""Residual branches begin closed, or open where a recipe says so."""

from pathlib import Path

import pytest
import torch
from torch import nn

from simsiam.export.write import write_encoder
from simsiam.methods.registry import build_method
from simsiam.models.blocks import residual_blocks
from simsiam.models.encoders import build_encoder, open_residual_branches


def scales(network: nn.Module) -> list[float]:
    """Of the last batch-norm of each residual block."""
    return [(getattr(block, "bn3", None) or block.bn2).weight.mean().item() for block in residual_blocks(network)]


@pytest.mark.parametrize("encoder", ["resnet8", "resnet50", "cifar_resnet18", "timm:resnet18", "timm:resnet50"])
@pytest.mark.parametrize("method", ["simsiam", "no-sg", "byol"])
def test_all_networks_of_a_method_are_opened(method: str, encoder: str) -> None:
    built = build_method({"name": method}, encoder)
    assert set(scales(built)) == {0.0}
    open_residual_branches(built)
    assert set(scales(built)) == {1.0}
    assert len(scales(built)) == len(scales(built.encoder)) * (1 if method == "simsiam" else 2)


def test_a_teacher_keeps_the_weights_of_its_file(tmp_path: Path) -> None:
    teacher = build_encoder("resnet8")
    for block in residual_blocks(teacher):
        nn.init.uniform_(block.bn2.weight)
    write_encoder(teacher, tmp_path / "teacher.safetensors", metadata={})
    built = build_method({"name": "simsiam-kd", "teacher": str(tmp_path / "teacher.safetensors")}, "resnet8")
    open_residual_branches(built)
    assert set(scales(built.encoder)) == {1.0}
    assert all(torch.equal(built.teacher.state_dict()[key], value) for key, value in teacher.state_dict().items())


def test_a_run_begins_as_its_setting_says(call, tmp_path: Path) -> None:
    from simsiam import load_encoder

    tiny = ("--recipe", "quickstart", "--views.size", 8, "--views.resize", 8, "--max-steps", 1, "--workers", 0)
    still = ("--knn-every", 0, "--optim.lr", 0, "--hide-progress")
    for value, begins in (("true", 0.0), ("false", 1.0)):
        out = tmp_path / value
        assert call("pretrain.py", *tiny, *still, "--zero-init-residual", value, "--out", out) == 0
        assert set(scales(load_encoder(out))) == {begins}
