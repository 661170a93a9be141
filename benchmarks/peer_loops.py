"""Training loops as other projects document them, in our words: sources and what is theirs about each stand below.

All have the same network, images in memory as torchvision's CIFAR10 has them, the views of SimSiam's CIFAR recipe, made
by PIL in a DataLoader's workers, and torch's batch-norm, called once a view.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from simsiam.models.encoders import build_encoder
from simsiam.models.heads import predictor, projector

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Steps = Iterator[Tensor]
"""Each is one step; what comes is its loss."""


class Given(NamedTuple):
    """What all loops are given.

    Attributes:
        pixels: uint8 (N, S, S, 3).
        labels: int64 (N,).
        dim, hidden, bottleneck: widths of the heads, whose projector has two layers.
    """

    pixels: np.ndarray
    labels: np.ndarray
    encoder: str
    batch_size: int
    workers: int
    device: torch.device
    dim: int
    hidden: int
    bottleneck: int


class Network(nn.Module):
    """Encoder and heads; a view (N, 3, S, S) -> projection and prediction."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.encoder = build_encoder(given.encoder)
        self.projector = projector(self.encoder.feature_dim, given.hidden, given.dim, layers=2)
        self.predictor = predictor(given.dim, given.bottleneck)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.encoder(view))
        return z, self.predictor(z)


class Views(Dataset):
    """Two views of an image, its label and number."""

    def __init__(self, given: Given, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pixels, self.labels, self.transform = given.pixels, given.labels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index]), index


class Twice:
    """Two draws of one transform."""

    def __init__(self, once: Callable) -> None:
        self.once = once

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.once(image), self.once(image)]


def official(given: Given) -> Steps:
    """facebookresearch/simsiam, main_simsiam.py: both views into one forward of the model, SGD a tensor at a time, and
    the loss read after every step."""
    network = Network(given).to(given.device).train()
    similarity = nn.CosineSimilarity(dim=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.015, momentum=0.9, weight_decay=1e-4, foreach=False)
    mean = 0.0
    for (x1, x2), _, _ in _loader(given, Twice(transforms.Compose(_view(transforms, given)))):
        (z1, p1), (z2, p2) = (network(x.to(given.device, non_blocking=True)) for x in (x1, x2))
        loss = -(similarity(p1, z2.detach()).mean() + similarity(p2, z1.detach()).mean()) / 2
        mean += loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def lightly(given: Given) -> Steps:
    """lightly-ai/lightly, examples/pytorch/simsiam.py: its transform, collation, heads and loss where the package is
    installed, else the same by torchvision's second transforms; with momentum as in its CIFAR-10 benchmark."""
    network = Network(given)
    side, collate, loss_of = given.pixels.shape[1], _concatenate, lambda z, p: -F.cosine_similarity(z, p).mean()
    transform: Callable = Twice(v2.Compose(_view(v2, given)))
    if find_spec("lightly"):
        from lightly.data.multi_view_collate import MultiViewCollate
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import ProjectionHead, SimSiamPredictionHead
        from lightly.transforms.simsiam_transform import SimSiamTransform

        width, hidden, dim = network.encoder.feature_dim, given.hidden, given.dim
        ends = (
            (width, hidden, nn.BatchNorm1d(hidden), nn.ReLU()),
            (hidden, dim, nn.BatchNorm1d(dim, affine=False), None),
        )
        network.projector = ProjectionHead(list(ends))
        network.predictor = SimSiamPredictionHead(dim, given.bottleneck, dim)
        transform = SimSiamTransform(input_size=side, gaussian_blur=0.0)
        collate, loss_of = MultiViewCollate(), NegativeCosineSimilarity()
    network.to(given.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.015, momentum=0.9, weight_decay=1e-4)
    total = torch.zeros((), device=given.device)
    for (x0, x1), _, _ in _loader(given, transform, collate):
        z0, p0 = network(x0.to(given.device))
        z1, p1 = network(x1.to(given.device))
        loss = (loss_of(z0.detach(), p1) + loss_of(z1.detach(), p0)) / 2
        total += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def solo_learn(given: Given) -> Steps:
    """vturrisi/solo-learn, solo/methods/{base,simsiam}.py: a classifier learns beside on the features of each view, and
    accuracies and the spread of z are measured at every step. Lightning's own work around a step is left out."""
    network = Network(given).to(given.device).train()
    classifier = nn.Linear(network.encoder.feature_dim, int(given.labels.max()) + 1).to(given.device)
    optimizer = torch.optim.SGD(
        [{"params": network.parameters()}, {"params": classifier.parameters(), "lr": 0.1, "weight_decay": 0.0}],
        lr=0.015, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    told = torch.zeros(3, device=given.device)
    for views, labels, _ in _loader(given, Twice(transforms.Compose(_view(transforms, given)))):
        labels, z, p, side_loss, right = labels.to(given.device), [], [], 0.0, 0.0
        for view in views:
            features = network.encoder(view.to(given.device))
            logits = classifier(features.detach())
            side_loss = side_loss + F.cross_entropy(logits, labels) / 2
            right = right + (logits.topk(min(5, logits.shape[1])).indices[:, :1] == labels[:, None]).float().mean() / 2
            z.append(network.projector(features))
            p.append(network.predictor(z[-1]))
        loss = sum(-F.cosine_similarity(a, b.detach(), dim=-1).mean() / 2 for a, b in zip(p, reversed(z), strict=True))
        deviation = sum(F.normalize(each, dim=-1).std(dim=0).mean() / 2 for each in z)
        told += torch.stack([loss.detach(), right, deviation.detach()])
        optimizer.zero_grad()
        (loss + side_loss).backward()
        optimizer.step()
        yield loss.detach()


def _loader(given: Given, transform: Callable, collate: Callable | None = None) -> DataLoader:
    return DataLoader(
        Views(given, transform), given.batch_size, shuffle=True, drop_last=True, num_workers=given.workers,
        pin_memory=given.device.type == "cuda", collate_fn=collate,
    )  # fmt: skip


def _view(kit: object, given: Given) -> list[Callable]:
    """A view of SimSiam's CIFAR recipe, from torchvision's first or second transforms."""
    side = given.pixels.shape[1]
    jitter = kit.RandomApply([kit.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = kit.RandomResizedCrop(side, scale=(0.2, 1.0))
    as_tensor = [kit.ToTensor()] if kit is transforms else [kit.ToImage(), kit.ToDtype(torch.float32, scale=True)]
    return [crop, jitter, kit.RandomGrayscale(p=0.2), kit.RandomHorizontalFlip(), *as_tensor, kit.Normalize(MEAN, STD)]


def _concatenate(batch: list[tuple[list[Tensor], int, int]]) -> tuple[list[Tensor], Tensor, list[int]]:
    views, labels, numbers = zip(*batch, strict=True)
    sides = [torch.cat([view.unsqueeze(0) for view in side]) for side in zip(*views, strict=True)]
    return sides, torch.tensor(labels), list(numbers)
