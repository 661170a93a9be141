"""ResNets for 32x32 images: ResNet-18/34/50 with a small stem, and the ResNet-20 to 110 of He et al.

Both kinds keep torchvision's names (conv1, bn1, layer1.., avgpool, fc) and its blocks, and end in `fc`, so that
classifiers published for them load as they are.
"""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


def stem_resnet(depth: int, *, zero_init_residual: bool = True, num_classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18, 34 or 50 with a 3x3 stride-1 stem and no max-pool (SimSiam appendix D).

    Images (N, 3, H, W) to logits (N, num_classes); ResNet-18 with 10 classes has 11,173,962 parameters.
    """
    models = torchvision.models
    build = {18: models.resnet18, 34: models.resnet34, 50: models.resnet50}[depth]
    model = build(num_classes=num_classes, zero_init_residual=zero_init_residual)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    # torchvision's rule for convolutions, which the replaced layer missed.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class ThinResNet(nn.Module):
    """ResNet of depth 6n+2 with widths 16, 32, 64 (He et al. 2016, section 4.2).

    Shortcuts are option B, a strided 1x1 convolution with batch-norm where the width changes, not the paper's
    parameter-free option A: so are the published teachers of RepDistiller (CRD), which load by name.
    """

    def __init__(self, depth: int, *, zero_init_residual: bool = True, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth} is not 6n+2")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or width_in != width:
        shortcut = nn.Sequential(
            nn.Conv2d(width_in, width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    first = BasicBlock(width_in, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))
