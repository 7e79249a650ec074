"""Blocks of the ImgX U-Net: instance norm, residual block with time, and a transformer block over voxels.

After "A recycling training strategy for medical image segmentation with diffusion denoising models" (Fu et al. 2023,
Figure 2) and its published code, from which the paper's silences are filled; written anew here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegdiff_cli.networks.layers import SpatialOps, timestep_embedding

TimeInjection = Literal["after-norm", "cancelled"]
PositionalEncoding = Literal["sinusoidal", "none"]


class InstanceNorm32(nn.Module):
    """Instance normalisation with gain and offset, computed in float32 at least.

    A grid of one voxel has no variance: the result is the offset, and finite, where torch's own layers refuse.

    Args:
        channels: features in and out.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of `x` (batch, channel, *spatial) over space; the result has the type of `x`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        # The operator itself: `F.group_norm` and `F.instance_norm` refuse one voxel.
        normed = torch.group_norm(x.to(exact), x.shape[1], self.weight.to(exact), self.bias.to(exact), self.eps)
        return normed.to(x.dtype)


class LayerNorm32(nn.LayerNorm):
    """Layer normalisation that is computed in float32 at least, whatever the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x`; the result has the type of `x`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        normed = F.layer_norm(x.to(exact), self.normalized_shape, self.weight.to(exact), self.bias.to(exact), self.eps)
        return normed.to(x.dtype)


class TimedResBlock(nn.Module):
    """conv, norm, GELU, dropout, conv, norm, plus the input, GELU; the timestep joins at the second norm.

    Args:
        ops: layer classes of the number of spatial axes.
        channels: features in and out.
        embedding_width: length of the timestep embedding; None for a block without time.
        time_injection: `after-norm`: the timestep scales and shifts the normed features (FiLM). `cancelled`: it is
            added right before the norm, as in the published code. The norm subtracts it again: the features do not
            depend on the timestep.
        dropout: probability of a zeroed feature before the second convolution.
    """

    def __init__(
        self,
        ops: SpatialOps,
        channels: int,
        *,
        embedding_width: int | None,
        time_injection: TimeInjection,
        dropout: float,
    ) -> None:
        super().__init__()
        self.time_injection = time_injection
        self.conv1 = ops.conv(channels, channels, 3, padding=1, bias=False)
        self.norm1 = InstanceNorm32(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ops.conv(channels, channels, 3, padding=1, bias=False)
        self.norm2 = InstanceNorm32(channels)
        self.time: nn.Linear | None = None
        if embedding_width is not None:
            self.time = nn.Linear(embedding_width, channels * (2 if time_injection == "after-norm" else 1))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Return features of the shape of `x`.

        Args:
            x: (batch, channels, *spatial).
            embedding: (batch, embedding_width), or None for a block without time.
        """
        h = self.conv2(self.dropout(F.gelu(self.norm1(self.conv1(x)))))
        if self.time is None or embedding is None:
            return F.gelu(x + self.norm2(h))
        code = self.time(F.gelu(embedding)).to(h.dtype)
        code = code.reshape(*code.shape, *(1,) * (h.ndim - 2))
        if self.time_injection == "cancelled":
            return F.gelu(x + self.norm2(h + code))
        scale, shift = code.chunk(2, dim=1)
        return F.gelu(x + self.norm2(h) * (1 + scale) + shift)


class TransformerBlock(nn.Module):
    """Self-attention of all voxels and an MLP, each after a layer norm and plus its input; a layer norm at the end.

    Args:
        channels: features in and out.
        num_heads: heads of the attention.
        num_head_channels: channels a head; need not divide `channels`.
        dropout: probability of a zeroed feature after attention and after the MLP.
        positional_encoding: `sinusoidal` adds sines and cosines of each voxel's index per axis, for grids of any
            size; with `none`, voxels are a set without order.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        num_head_channels: int,
        dropout: float,
        positional_encoding: PositionalEncoding,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_encoding = positional_encoding
        hidden = num_heads * num_head_channels
        self.norm1 = LayerNorm32(channels)
        self.qkv = nn.Linear(channels, 3 * hidden)
        self.proj_out = nn.Linear(hidden, channels)
        self.norm2 = LayerNorm32(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.dropout = nn.Dropout(dropout)
        self.norm_out = LayerNorm32(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (batch, channel, *spatial)."""
        if self.positional_encoding == "sinusoidal":
            x = x + grid_encoding(x.shape[1], x.shape[2:], x.device).to(x.dtype)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.dropout(self._attend(self.norm1(tokens)))
        tokens = tokens + self.dropout(self.mlp(self.norm2(tokens)))
        return self.norm_out(tokens).transpose(1, 2).reshape(x.shape)

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape[:2]
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.contiguous().unbind(0)
        h = F.scaled_dot_product_attention(query, key, value)
        return self.proj_out(h.transpose(1, 2).reshape(batch, length, -1))


def grid_encoding(channels: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a code of each voxel's place: cosines and sines of its index along each axis (Vaswani et al. 2017).

    The axes share the channels evenly; channels that do not divide among them stay zero. The code of a place does not
    depend on the size of the grid.

    Returns:
        float32 (channels, *size).
    """
    width = channels // len(size)
    code = torch.zeros((channels, *size), device=device)
    for axis, length in enumerate(size):
        along = timestep_embedding(torch.arange(length, device=device), width).transpose(0, 1)
        shape = (width, *(length if other == axis else 1 for other in range(len(size))))
        code[axis * width : (axis + 1) * width] = along.reshape(shape)
    return code


def normed_resampling(conv: nn.Module, channels: int) -> nn.Sequential:
    """Return a strided or transposed convolution followed by its instance norm."""
    return nn.Sequential(conv, InstanceNorm32(channels))
