"""Blocks: the residual and the attention block of guided diffusion's U-Net (Dhariwal & Nichol 2021).

Attribute names are those of the published code, because they are the names in public weights.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from medsegdiff_cli.networks.layers import Downsample, SpatialOps, Upsample, group_norm, zero_init


class ResBlock(nn.Module):
    """norm, SiLU, (resample), conv, timestep, norm, SiLU, dropout, conv, plus the input.

    Args:
        ops: layer classes of the number of spatial axes.
        in_channels: features that come in.
        out_channels: features that go out.
        embedding_width: length of the timestep embedding, or None for a block without time.
        dropout: probability of a zeroed feature before the last convolution.
        num_groups: of the group norms.
        use_scale_shift_norm: the timestep scales and shifts the normed features (FiLM) instead of being added before.
        down, up: strides per axis of a block that resamples; at most one of them.

    Raises:
        ValueError: the timestep would be added right before a norm that removes it.
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
        use_scale_shift_norm: bool,
        down: tuple[int, ...] | None = None,
        up: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            group_norm(in_channels, num_groups), nn.SiLU(), ops.conv(in_channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module = nn.Identity()
        if down is not None:
            self.resample = Downsample(ops, down)
        elif up is not None:
            self.resample = Upsample(ops, up)
        self.emb_layers: nn.Module | None = None
        if embedding_width is not None:
            width = out_channels * (2 if use_scale_shift_norm else 1)
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, width))
        norm = group_norm(out_channels, num_groups)
        if embedding_width is not None and not use_scale_shift_norm and norm.num_groups == out_channels:
            # A constant per channel is what an instance norm subtracts: the network could not see the time.
            raise ValueError(
                f"a group norm with one channel a group ({out_channels} channels) cancels an added timestep; "
                "use use_scale_shift_norm=True or fewer num_groups"
            )
        last_conv = zero_init(ops.conv(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(dropout), last_conv)
        same = in_channels == out_channels
        self.skip_connection: nn.Module = nn.Identity() if same else ops.conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Return features (batch, out_channels, *spatial), resampled when the block does so.

        Args:
            x: (batch, in_channels, *spatial).
            embedding: (batch, embedding_width), or None for a block without time.
        """
        norm_in, act, conv = self.in_layers
        h = conv(self.resample(act(norm_in(x))))
        if self.emb_layers is None:
            h = self.out_layers(h)
        else:
            code = self.emb_layers(embedding).to(h.dtype)
            code = code.reshape(*code.shape, *(1,) * (h.ndim - 2))
            h = self._with_time(h, code)
        return self.skip_connection(self.resample(x)) + h

    def _with_time(self, h: Tensor, code: Tensor) -> Tensor:
        if not self.use_scale_shift_norm:
            return self.out_layers(h + code)
        scale, shift = code.chunk(2, dim=1)
        return self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)


class AttentionBlock(nn.Module):
    """Self-attention of all voxels, plus the input.

    The rows of `qkv` are ordered (head, query | key | value, channel), as in public weights.

    Args:
        channels: features in and out.
        num_head_channels: channels a head; where they don't divide `channels`, the gcd of both.
        num_groups: of the group norm.
    """

    def __init__(self, channels: int, *, num_head_channels: int, num_groups: int) -> None:
        super().__init__()
        self.num_heads = channels // math.gcd(channels, num_head_channels)
        self.norm = group_norm(channels, num_groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (batch, channel, *spatial)."""
        batch, channels = x.shape[:2]
        h = self.qkv(self.norm(x).reshape(batch, channels, -1))
        h = h.reshape(batch, self.num_heads, 3, channels // self.num_heads, -1)
        # Attention without the voxels x voxels matrix exists only for heads whose channels are adjacent in memory.
        query, key, value = h.transpose(-1, -2).contiguous().unbind(2)
        h = F.scaled_dot_product_attention(query, key, value)
        h = self.proj_out(h.transpose(-1, -2).reshape(batch, channels, -1))
        return x + h.reshape(x.shape)


class EmbedSequential(nn.Sequential):
    """A sequence whose residual blocks are given the timestep embedding."""

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return the features of the last layer; see `ResBlock.forward` for the shapes."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x
