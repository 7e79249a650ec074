"""DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) on a ResNet with output stride 8, under torchvision's names.

Parallel convolutions of dilation 12, 24 and 36, a 1x1 convolution and the mean over the image (ASPP) look at the
encoder's features at several scales; their joined output becomes logits, which are stretched to the image bilinearly.
A state dict of torchvision's `deeplabv3_resnet50` fits, without its `aux_classifier`.

Differs from torchvision: see `networks.resnet`; the number of image channels and the dropout are settings, and there is
no auxiliary classifier.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegdiff_cli.networks.depth import Layers, each_of
from medsegdiff_cli.networks.resnet import Norm, ResNet

_RATES = (12, 24, 36)
_OUTPUT_STRIDE = 8


class ImagePooling(nn.Sequential):
    """Mean over the image, 1x1 convolution, norm and ReLU, given to every position."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1, bias=False), Norm(out_channels), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height, width) of features (batch, in_channels, height, width)."""
        pooled: Tensor = super().forward(x)
        return pooled.expand(-1, -1, *x.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                _conv_norm_relu(in_channels, out_channels, 1),
                *(_conv_norm_relu(in_channels, out_channels, 3, rate) for rate in _RATES),
                ImagePooling(in_channels, out_channels),
            ]
        )
        self.project = nn.Sequential(
            *_conv_norm_relu(len(self.convs) * out_channels, out_channels, 1), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height, width) of features (batch, in_channels, height, width)."""
        joined: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], 1))
        return joined


class DeepLabV3(nn.Module):
    """Image in, logits of the classes out; two spatial axes of any size (multiples of 8 lose nothing).

    Args:
        width: of the encoder's first convolution, 64 in ResNet-50; the head has 4 times as many channels.
        blocks: of the encoder's stages.
        dropout: probability of a zeroed feature behind the joined branches; 0.5 in torchvision.
    """

    input_layer: ClassVar[str] = "backbone.conv1"
    output_layer: ClassVar[str] = "classifier.4"
    encoder_parts: ClassVar[tuple[str, ...]] = ("backbone",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("classifier",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(in_channels, width, blocks)
        head = 4 * width
        self.classifier = nn.Sequential(
            ASPP(self.backbone.out_channels, head, dropout),
            *_conv_norm_relu(head, head, 3, 1),
            nn.Conv2d(head, out_channels, 1),
        )

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each bottleneck is one (see `networks.depth`)."""
        stages = (self.backbone.layer1, self.backbone.layer2, self.backbone.layer3, self.backbone.layer4)
        blocks = [
            layer for i, stage in enumerate(stages, 1) for layer in each_of(f"backbone.layer{i}", length=len(stage))
        ]
        head = (("classifier.0",), ("classifier.1", "classifier.2"), ("classifier.4",))
        return (("backbone.conv1", "backbone.bn1"), *blocks, *head)

    @property
    def divisor(self) -> tuple[int, ...]:
        """The output stride of each axis."""
        return (_OUTPUT_STRIDE, _OUTPUT_STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, class, height, width) of an image (batch, channel, height, width)."""
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _conv_norm_relu(in_channels: int, out_channels: int, kernel: int, rate: int = 1) -> nn.Sequential:
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(conv, Norm(out_channels), nn.ReLU())
