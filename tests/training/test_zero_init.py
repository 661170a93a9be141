"""Residual branches begin closed, or open where a recipe says so."""

from pathlib import Path

import pytest
from torch import nn

from simsiam.methods.registry import build_method
from simsiam.models.blocks import residual_blocks
from simsiam.models.encoders import open_residual_branches


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


def test_a_run_begins_as_its_setting_says(call, tmp_path: Path) -> None:
    from simsiam import load_encoder

    tiny = ("--recipe", "quickstart", "--views.size", 8, "--views.resize", 8, "--max-steps", 1, "--workers", 0)
    still = ("--knn-every", 0, "--optim.lr", 0, "--hide-progress")
    for value, begins in (("true", 0.0), ("false", 1.0)):
        out = tmp_path / value
        assert call("pretrain.py", *tiny, *still, "--zero-init-residual", value, "--out", out) == 0
        assert set(scales(load_encoder(out))) == {begins}
