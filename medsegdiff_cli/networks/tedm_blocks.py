"""Blocks of the TEDM paper's U-Net: residual block, linear and cosine attention, time embedding.

They follow the widespread "denoising diffusion in PyTorch" U-Net (lucidrains) that TEDM was trained with
(Rosnati et al. 2023, section 3); written anew here, for two or three spatial axes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegdiff_cli.networks.layers import SpatialOps, group_norm

COSINE_SCALE = 16.0


def sinusoidal_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Return sines, then cosines of `t`, as float32 (batch, width).

    Unlike `layers.timestep_embedding`, sines come first and the slowest frequency is exactly 1 / `max_period`
    (the exponent's denominator is one less).

    Args:
        t: (batch,) timesteps, unscaled.
        width: length of the embedding; an odd one ends with a zero.
        max_period: longest period over 2 pi.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - 1, 1)
    angles = t[:, None].float() * torch.exp(-math.log(max_period) * exponents)[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, with a gain and no offset; computed in float32 at least."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (batch, channel, *spatial); the result has the type of `x`."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, dim=1, keepdim=True, correction=0)
        gain = self.gain.reshape(-1, *(1,) * (x.ndim - 2))
        return ((exact - mean) * (variance + self.eps).rsqrt() * gain).to(x.dtype)


class FiLMBlock(nn.Module):
    """conv, norm, FiLM by the timestep, SiLU; conv, norm, SiLU; plus the input.

    Args:
        ops: layer classes of the number of spatial axes.
        in_channels: features that come in.
        out_channels: features that go out.
        embedding_width: length of the timestep embedding; None for a block without time, whose FiLM is left out.
        dropout: probability of a zeroed feature before the second convolution.
        num_groups: of the group norms.
    """

    def __init__(
        self,
        ops: SpatialOps,
        in_channels: int,
        out_channels: int,
        *,
        embedding_width: int | None,
        dropout: float,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.film: nn.Module | None = None
        if embedding_width is not None:
            self.film = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 2 * out_channels))
        self.conv1 = ops.conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = group_norm(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ops.conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, num_groups)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else ops.conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Return features (batch, out_channels, *spatial).

        Args:
            x: (batch, in_channels, *spatial).
            embedding: (batch, embedding_width), or None for a block without time.
        """
        h = self.norm1(self.conv1(x))
        if self.film is not None:
            code = self.film(embedding).to(h.dtype)
            scale, shift = code.reshape(*code.shape, *(1,) * (h.ndim - 2)).chunk(2, dim=1)
            h = h * (scale + 1) + shift
        h = self.norm2(self.conv2(self.dropout(F.silu(h))))
        return F.silu(h) + self.shortcut(x)


class LinearAttention(nn.Module):
    """Attention whose cost grows with the voxels, not with their square (Shen et al. 2021), plus the input.

    Differs from the published code: values are not divided by the number of voxels. The softmax over voxels is a mean
    already; dividing twice would tie the features to the size of the patch.

    Args:
        channels: features in and out.
        num_heads: heads.
        num_head_channels: channels a head; need not divide `channels`.
    """

    def __init__(self, channels: int, *, num_heads: int, num_head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = num_head_channels**-0.5
        hidden = num_heads * num_head_channels
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * hidden, 1, bias=False)
        self.proj_out = nn.Conv1d(hidden, channels, 1)
        self.norm_out = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (batch, channel, *spatial)."""
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x).reshape(batch, channels, -1))
        query, key, value = qkv.reshape(batch, 3, self.num_heads, -1, qkv.shape[-1]).unbind(1)
        query, key = query.softmax(dim=-2) * self.scale, key.softmax(dim=-1)
        context = value @ key.transpose(-1, -2).to(value.dtype)
        h = (context @ query.to(value.dtype)).reshape(batch, -1, qkv.shape[-1])
        return x + self.norm_out(self.proj_out(h)).reshape(x.shape)


class CosineAttention(nn.Module):
    """Self-attention of all voxels on unit-length queries and keys, plus the input.

    Args:
        channels: features in and out.
        num_heads: heads.
        num_head_channels: channels a head; need not divide `channels`.
    """

    def __init__(self, channels: int, *, num_heads: int, num_head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        hidden = num_heads * num_head_channels
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * hidden, 1, bias=False)
        self.proj_out = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (batch, channel, *spatial)."""
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x).reshape(batch, channels, -1))
        heads = qkv.reshape(batch, 3, self.num_heads, -1, qkv.shape[-1]).transpose(-1, -2).contiguous()
        query, key, value = heads.unbind(1)
        query, key = F.normalize(query, dim=-1).to(value.dtype), F.normalize(key, dim=-1).to(value.dtype)
        h = F.scaled_dot_product_attention(query, key, value, scale=COSINE_SCALE)
        return x + self.proj_out(h.transpose(-1, -2).reshape(batch, -1, qkv.shape[-1])).reshape(x.shape)
