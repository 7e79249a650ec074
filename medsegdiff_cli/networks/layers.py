"""Layers: the smallest parts of the U-Net, chosen once for two or three spatial axes.

After guided diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", appendix A and its
MIT-licensed code, whose parameter names are kept); written anew here.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SpatialOps:
    """The layer classes of one number of spatial axes."""

    conv: type[nn.Conv2d] | type[nn.Conv3d]
    avg_pool: type[nn.AvgPool2d] | type[nn.AvgPool3d]
    conv_transpose: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]


SPATIAL_OPS = {
    2: SpatialOps(nn.Conv2d, nn.AvgPool2d, nn.ConvTranspose2d),
    3: SpatialOps(nn.Conv3d, nn.AvgPool3d, nn.ConvTranspose3d),
}


class GroupNorm32(nn.GroupNorm):
    """Group normalisation that is computed in float32 at least, whatever the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (batch, channel, *spatial); the result has the type of `x`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        normed = F.group_norm(x.to(exact), self.num_groups, self.weight.to(exact), self.bias.to(exact), self.eps)
        return normed.to(x.dtype)


def group_norm(channels: int, num_groups: int) -> GroupNorm32:
    """Return the norm of `channels` features in `num_groups` groups, or in as many as divide both (their gcd)."""
    return GroupNorm32(math.gcd(channels, num_groups), channels)


def zero_init(layer: nn.Module) -> nn.Module:
    """Set all parameters of `layer` to zero, so that a residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Return sines and cosines of `t` in geometrically spaced frequencies (Vaswani et al. 2017).

    Args:
        t: (batch,) timesteps, whole or fractional, unscaled.
        width: length of the embedding; an odd one ends with a zero.
        max_period: longest period over 2 pi.

    Returns:
        float32 (batch, width): cosines first.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Downsample(nn.Module):
    """Shrink the spatial axes by `strides`: by a strided convolution (`op`), or by averaging without parameters."""

    def __init__(self, ops: SpatialOps, strides: tuple[int, ...], channels: int | None = None) -> None:
        super().__init__()
        if channels is None:
            self.op: nn.Module = ops.avg_pool(strides, stride=strides)
        else:
            self.op = ops.conv(channels, channels, 3, stride=strides, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (batch, channel, *spatial) on the coarser grid."""
        return self.op(x)


class Upsample(nn.Module):
    """Repeat voxels along the spatial axes by `strides`, then convolve when `channels` is given (`conv`)."""

    def __init__(self, ops: SpatialOps, strides: tuple[int, ...], channels: int | None = None) -> None:
        super().__init__()
        self.factors = tuple(float(stride) for stride in strides)
        self.conv: nn.Module = nn.Identity() if channels is None else ops.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (batch, channel, *spatial) on the finer grid."""
        return self.conv(F.interpolate(x, scale_factor=self.factors, mode="nearest"))
