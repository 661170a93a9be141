"""A feature pyramid over a ResNet, on torchvision's parts, with Detectron2's initialisation."""

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead

STRIDES = (4, 8, 16, 32)  # pixels, of layer1 to layer4; the proposals' fifth map has 64


def pyramid(encoder: nn.Module, norm: bool) -> BackboneWithFPN:
    """The encoder's modules up to layer4 with five maps of 256 channels; `norm` puts batch-norm in its convolutions."""
    widths = [stage[0].conv1.in_channels for stage in (encoder.layer2, encoder.layer3, encoder.layer4)]
    widths.append(encoder.layer4[0].downsample[0].out_channels)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(encoder, layers, widths, 256, norm_layer=nn.BatchNorm2d if norm else None)


def box_head(width: int, side: int) -> TwoMLPHead:
    """Crops (R, width, side, side) -> (R, 1024) by two linear layers with ReLU."""
    head = TwoMLPHead(width * side**2, 1024)
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    return head
