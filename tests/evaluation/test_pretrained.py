"""A protocol tells where it shows an encoder other images than it was trained on."""

from pathlib import Path

from simsiam.evaluation.pretrained import unlike_pretraining
from simsiam.settings.tree import Linear, Views

CIFAR = "views: {size: 32, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616]}"


def test_another_size_and_other_statistics_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CIFAR)
    size, mean, std = unlike_pretraining(
        Linear(pretrained=str(tmp_path / "encoder.safetensors"), views=Views(size=224))
    )
    assert "was trained on views of 32 pixels and is measured on 224; --views.size 32" in size
    assert "views.mean is [0.485, 0.456, 0.406] here and was [0.4914, 0.4822, 0.4465] where" in mean
    assert mean.replace("mean", "std") != std.replace("mean", "std")
    same = Views(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert list(unlike_pretraining(Linear(pretrained=str(tmp_path), views=same))) == []


def test_of_a_file_without_a_run_nothing_is_known(tmp_path: Path) -> None:
    assert list(unlike_pretraining(Linear(pretrained=str(tmp_path / "resnet50.pth")))) == []
    (tmp_path / "config.yaml").write_text("views: 3")
    assert list(unlike_pretraining(Linear(pretrained=str(tmp_path)))) == []
