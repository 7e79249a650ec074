"""DeepLabv3 on ResNet-50: torchvision's names and sizes, written down by hand, and its forward pass spelled out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsegdiff_cli.networks.deeplabv3 import DeepLabV3
from medsegdiff_cli.networks.resnet import Norm

# Of torchvision 0.15's `deeplabv3_resnet50(num_classes=21).state_dict()`.
PUBLISHED = {
    "backbone.conv1.weight": (64, 3, 7, 7),
    "backbone.bn1.running_var": (64,),
    "backbone.layer1.0.conv1.weight": (64, 64, 1, 1),
    "backbone.layer1.0.conv3.weight": (256, 64, 1, 1),
    "backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "backbone.layer1.0.downsample.1.num_batches_tracked": (),
    "backbone.layer1.2.bn3.bias": (256,),
    "backbone.layer2.0.conv1.weight": (128, 256, 1, 1),
    "backbone.layer2.3.conv2.weight": (128, 128, 3, 3),
    "backbone.layer3.0.downsample.0.weight": (1024, 512, 1, 1),
    "backbone.layer3.5.conv3.weight": (1024, 256, 1, 1),
    "backbone.layer4.0.conv2.weight": (512, 512, 3, 3),
    "backbone.layer4.2.bn3.running_mean": (2048,),
    "classifier.0.convs.0.0.weight": (256, 2048, 1, 1),
    "classifier.0.convs.0.1.weight": (256,),
    "classifier.0.convs.1.0.weight": (256, 2048, 3, 3),
    "classifier.0.convs.3.1.running_mean": (256,),
    "classifier.0.convs.4.1.weight": (256, 2048, 1, 1),
    "classifier.0.convs.4.2.weight": (256,),
    "classifier.0.project.0.weight": (256, 1280, 1, 1),
    "classifier.0.project.1.running_var": (256,),
    "classifier.1.weight": (256, 256, 3, 3),
    "classifier.2.weight": (256,),
    "classifier.4.weight": (21, 256, 1, 1),
    "classifier.4.bias": (21,),
}


def published_count(classes):
    """Parameters by the papers' tables: each convolution without bias, with a norm of two numbers a channel."""

    def conv(inner, outer, kernel):
        return inner * outer * kernel**2 + 2 * outer

    total = conv(3, 64, 7)
    inner = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        total += conv(inner, 4 * width, 1)
        for _ in range(blocks):
            total += conv(inner, width, 1) + conv(width, width, 3) + conv(width, 4 * width, 1)
            inner = 4 * width
    total += 2 * conv(2048, 256, 1) + 3 * conv(2048, 256, 3) + conv(5 * 256, 256, 1) + conv(256, 256, 3)
    return total + (256 + 1) * classes


def test_names_shapes_and_number_of_parameters_are_torchvisions():
    with torch.device("meta"):
        network = DeepLabV3(3, 21)
    state = network.state_dict()
    assert {name: tuple(state[name].shape) for name in PUBLISHED} == PUBLISHED
    # 53 convolutions and norms of ResNet-50; of the head 7 with a norm each, and the last layer.
    assert len(state) == (53 + 7) * (1 + 5) + 2
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == published_count(21) == 39_638_869
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert backbone == 25_557_032 - (2048 + 1) * 1000, "ResNet-50 without its classifier of ImageNet"


def small(in_channels=3, out_channels=4, **kind):
    torch.manual_seed(0)
    network = DeepLabV3(in_channels, out_channels, width=4, blocks=(1, 2, 2, 2), **kind).double()
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5 * name.endswith("var"))
    return network


def spelled_out(state, x, blocks=(1, 2, 2, 2)):
    """The forward pass by names, as the papers and torchvision's documentation describe it."""

    def norm(x, name):
        return F.batch_norm(
            x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
        )

    def conv_norm(x, conv, bn, **how):
        return norm(F.conv2d(x, state[f"{conv}.weight"], **how), bn)

    height, width = x.shape[2:]
    x = conv_norm(x, "backbone.conv1", "backbone.bn1", stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    dilations = {"1.0": 1, "1.1": 1, "2.0": 1, "2.1": 1, "3.0": 1, "3.1": 2, "4.0": 2, "4.1": 4}
    for layer, number in enumerate(blocks, 1):
        for index in range(number):
            at, dilation = f"backbone.layer{layer}.{index}", dilations[f"{layer}.{index}"]
            stride = 2 if (layer, index) == (2, 0) else 1
            h = conv_norm(x, f"{at}.conv1", f"{at}.bn1").relu()
            h = conv_norm(h, f"{at}.conv2", f"{at}.bn2", stride=stride, padding=dilation, dilation=dilation).relu()
            h = conv_norm(h, f"{at}.conv3", f"{at}.bn3")
            if index == 0:
                x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", stride=stride)
            x = (h + x).relu()
    aspp = "classifier.0.convs"
    branches = [conv_norm(x, f"{aspp}.0.0", f"{aspp}.0.1").relu()]
    for index, rate in enumerate((12, 24, 36), 1):
        branches.append(conv_norm(x, f"{aspp}.{index}.0", f"{aspp}.{index}.1", padding=rate, dilation=rate).relu())
    pooled = conv_norm(x.mean((2, 3), keepdim=True), f"{aspp}.4.1", f"{aspp}.4.2").relu()
    branches.append(F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False))
    x = conv_norm(torch.cat(branches, 1), "classifier.0.project.0", "classifier.0.project.1").relu()
    x = conv_norm(x, "classifier.1", "classifier.2", padding=1).relu()
    x = F.conv2d(x, state["classifier.4.weight"], state["classifier.4.bias"])
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(64, 96), (37, 50)])
def test_the_forward_pass_is_the_one_that_is_spelled_out(size):
    network = small().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, expected = network(x), spelled_out(network.state_dict(), x)
    assert ours.shape == (2, 4, *size)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_features_have_an_eighth_of_the_resolution():
    network = small().eval()
    assert network.divisor == (8, 8)
    assert network.backbone(torch.zeros(1, 3, 64, 80, dtype=torch.float64)).shape == (1, 32 * 4, 8, 10)


def test_a_batch_of_one_image_trains_and_moves_no_statistics_that_it_has_not():
    network = small(in_channels=1, dropout=0.0).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(1, 1, 40, 40, dtype=torch.float64)).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert not any(name.startswith("classifier.0.convs.4.") for name in moved)
    assert {"backbone.bn1.running_mean", "classifier.2.running_mean"} <= moved


def test_the_norm_is_a_batch_norm_wherever_that_is_defined():
    ours, theirs = Norm(3), nn.BatchNorm2d(3)
    for shape in ((2, 3, 1, 1), (1, 3, 2, 1), (4, 3, 5, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    alone = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(ours(alone), theirs.eval()(alone))
