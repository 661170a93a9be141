"""The linear protocol: one fully connected layer on frozen features."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProbeOutput(NamedTuple):
    """loss: float32 scalar; logits: (N, C), detached."""

    loss: Tensor
    logits: Tensor


class LinearProbe(nn.Module):
    """A frozen encoder, whose batch-norm stays in evaluation mode, and a classifier that is all that trains.

    The classifier starts at weight N(0, 0.01) and bias 0 (official `main_lincls.py`).
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(encoder.feature_dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Training mode of the classifier; the encoder never leaves evaluation mode, so its statistics cannot move."""
        super().train(mode)
        self.encoder.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C)."""
        with torch.no_grad():
            features = self.encoder(images)
        return self.head(features)

    def forward(self, images: Tensor, labels: Tensor) -> ProbeOutput:
        """Cross-entropy of images (N, 3, H, W), or of one view (1, N, 3, H, W), with labels int64 (N,)."""
        logits = self.logits(images.flatten(0, -4))
        return ProbeOutput(F.cross_entropy(logits.float(), labels), logits.detach())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Exactly two tensors train: the classifier's weight and bias."""
        return {"head": [self.head.weight, self.head.bias]}

    def after_step(self) -> None:
        """Nothing follows a step."""


def write_classifier(head: nn.Linear, classes: tuple[str, ...], path: Path) -> None:
    """Weight and bias as safetensors, the class names in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    temporary = path.with_name(f".{path.name}.unfinished")
    safetensors.torch.save_file(tensors, temporary, {"format": "pt", "classes": json.dumps(classes)})
    os.replace(temporary, path)
