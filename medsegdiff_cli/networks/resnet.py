"""ResNet with bottleneck blocks (He et al. 2016), as an encoder with output stride 8, under torchvision's names.

Weights that were published for torchvision's `resnet50` fit as they are: `conv1.weight`, `bn1.weight`,
`layer1.0.conv1.weight`, `layer1.0.downsample.0.weight` and so on. As there, the 3x3 convolution of a block carries the
stride, and the last two stages dilate instead of striding, so that features have an eighth of the image's resolution.

Differs from torchvision: width and number of blocks are settings; any number of image channels; no classifier; and a
norm takes its running statistics where a training batch gives it one number a channel, whose variance is undefined.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 4
# Stride and dilation that torchvision gives the stages with `replace_stride_with_dilation=[False, True, True]`.
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)


class Norm(nn.BatchNorm2d):
    """Batch norm that also trains on one number a channel: (1, channel, 1, 1) is normed by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed features, of the shape of `x` (batch, channel, height, width)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        normed: Tensor = super().forward(x)
        return normed


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with a norm, plus the input.

    Args:
        width: channels of the 3x3 convolution; four times as many come out.
        stride, dilation: of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = Norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = Norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = Norm(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), Norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (batch, 4 width, height / stride, width / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Encoder of two spatial axes.

    Args:
        in_channels: of the image.
        width: channels of the first convolution; 64 in ResNet-50. The features have 32 times as many.
        blocks: bottlenecks of each of the four stages; (3, 4, 6, 3) in ResNet-50.
    """

    def __init__(self, in_channels: int, width: int = 64, blocks: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = Norm(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(width, index, number) for index, number in enumerate(blocks)
        )
        self.out_channels = 8 * width * _EXPANSION
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return features (batch, 32 width, height / 8, width / 8), rounded up, of an image (batch, channel, *)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def _stage(width: int, index: int, n_blocks: int) -> nn.Sequential:
    """Return a stage; as in torchvision its first block still has the dilation of the stage before."""
    inner = width * 2**index
    in_channels = width if index == 0 else inner // 2 * _EXPANSION
    before = _DILATIONS[max(index - 1, 0)]
    first = Bottleneck(in_channels, inner, stride=_STRIDES[index], dilation=before)
    others = (Bottleneck(inner * _EXPANSION, inner, stride=1, dilation=_DILATIONS[index]) for _ in range(n_blocks - 1))
    return nn.Sequential(first, *others)
