"""A ResNet in two: stem to layer3 over the image, layer4 over each region (Detectron2's C4)."""

from collections import OrderedDict

from torch import Tensor, nn


class Trunk(nn.Module):
    """Stem to layer3 of a torchvision ResNet, whose modules it takes over: images to maps of stride 16."""

    stride = 16  # pixels

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool
        self.layer1, self.layer2, self.layer3 = encoder.layer1, encoder.layer2, encoder.layer3
        self.out_channels = encoder.layer4[0].conv1.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the output of layer3; sizes are rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer3(self.layer2(self.layer1(x)))


class Res5(nn.Sequential):
    """layer4 of a torchvision ResNet, and with `extra_norm` one batch-norm behind it (MoCo, appendix A.1).

    Crops (R, C, 14, 14) -> (R, width, 7, 7). The norm is there because a pretrained layer4 ends in large numbers, which
    layers drawn small behind it do not expect.
    """

    def __init__(self, encoder: nn.Module, extra_norm: bool) -> None:
        width = encoder.layer4[0].downsample[0].out_channels
        layers = OrderedDict(layer4=encoder.layer4)
        if extra_norm:
            layers["norm"] = nn.BatchNorm2d(width)
        super().__init__(layers)
        self.out_channels = width
