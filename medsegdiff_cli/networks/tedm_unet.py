"""TEDM U-Net: the network of "Robust semi-supervised segmentation with timestep ensembling diffusion models".

Rosnati, Roschewitz, Glocker 2023. The paper does not describe its network; the published code's is the widespread
lucidrains U-Net: every level has residual blocks and linear attention, the middle has full attention. At the paper's
size (64 channels, multiples 1, 2, 4, 8) it has 36.2 million parameters, and its four decoder levels give
512 + 256 + 128 + 64 = 960 features at 1/8, 1/4, 1/2 and 1 of the image's size.

Differs from the published code: two or three axes, strides per axis, attention and dropout are settings, and linear
attention does not depend on the size of the patch (see `LinearAttention`).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsegdiff_cli.networks.depth import Layers, each_of
from medsegdiff_cli.networks.layers import SPATIAL_OPS, Upsample
from medsegdiff_cli.networks.levels import check_levels, filled_strides
from medsegdiff_cli.networks.tapped_unet import TappedUNet
from medsegdiff_cli.networks.tedm_blocks import CosineAttention, FiLMBlock, LinearAttention, sinusoidal_embedding


class TEDMSettings(BaseModel):
    """All that fixes the shape of a `TEDMUNet`; the defaults are the paper's.

    Attributes:
        n_dims: spatial axes, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        model_channels: features of a level with multiple 1.
        channel_mult: features of each level on the way up, finest first, as multiples of `model_channels`. On the way
            down a level has the features of the next finer one (the finest `model_channels`).
        num_res_blocks: residual blocks a level, on the way down and on the way up.
        attention_levels: levels with linear attention, 0 is the finest; None: all. With none, the full attention in
            the middle goes away too.
        num_heads: heads of every attention.
        num_head_channels: channels of an attention head.
        dropout: probability, in the residual blocks.
        use_time: whether the network is told a timestep; without it no embedding layer exists and FiLM is left out.
        strides: 1 or 2 for each level transition and axis, finest first; None: 2 everywhere.
        gradient_checkpointing: compute the activations of a level again in the backward pass: less memory, more time.
        num_groups: groups of a group norm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    n_dims: int = Field(ge=2, le=3)
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    model_channels: int = Field(default=64, ge=1)
    channel_mult: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] | None = None
    num_heads: int = Field(default=4, ge=1)
    num_head_channels: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    use_time: bool = True
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False
    num_groups: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "TEDMSettings":
        check_levels(self.level_channels, self.levels_with_attention, self.level_strides, self.n_dims)
        return self

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Features of each level on the way up, finest first."""
        return tuple(multiple * self.model_channels for multiple in self.channel_mult)

    @property
    def levels_with_attention(self) -> tuple[int, ...]:
        """Levels with linear attention, with the default filled in."""
        return tuple(range(len(self.channel_mult))) if self.attention_levels is None else self.attention_levels

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides per level transition and axis, with the default filled in."""
        return filled_strides(self.strides, self.n_dims, len(self.channel_mult))


class TEDMUNet(TappedUNet):
    """U-Net with residual blocks, linear attention at every level and timesteps.

    Args:
        settings: the shape of the network; kept as `settings`.
    """

    settings: TEDMSettings
    input_layer: ClassVar[str] = "stem"
    output_layer: ClassVar[str] = "out"
    encoder_parts: ClassVar[tuple[str, ...]] = ("time_embed", "stem", "down_levels", "down_resamplers")
    time_parts: ClassVar[tuple[str, ...]] = ("time_embed",)
    middle_parts: ClassVar[tuple[str, ...]] = ("middle",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("up_levels", "up_resamplers", "final", "out")

    def __init__(self, settings: TEDMSettings) -> None:
        super().__init__()
        self.settings = settings
        self._ops = SPATIAL_OPS[settings.n_dims]
        first, width = settings.model_channels, 4 * settings.model_channels
        self._embedding_width = width if settings.use_time else None
        self.time_embed: nn.Module | None = None
        if settings.use_time:
            self.time_embed = nn.Sequential(nn.Linear(first, width), nn.GELU(), nn.Linear(width, width))
        self.stem = self._ops.conv(settings.in_channels, first, 7, padding=3)
        # A level's features on the way down are those of the next finer level.
        fine, coarse = (first, *settings.level_channels[:-1]), settings.level_channels
        levels = range(len(coarse))
        self.down_levels = nn.ModuleList([self._level(i, [fine[i]] * settings.num_res_blocks, fine[i]) for i in levels])
        self.down_resamplers = nn.ModuleList([self._down(i, fine[i], coarse[i]) for i in levels])
        with_attention = bool(settings.levels_with_attention)
        heads = {"num_heads": settings.num_heads, "num_head_channels": settings.num_head_channels}
        self.middle = nn.ModuleList(
            [
                self._res(coarse[-1], coarse[-1]),
                CosineAttention(coarse[-1], **heads) if with_attention else nn.Identity(),
                self._res(coarse[-1], coarse[-1]),
            ]
        )
        self.up_levels = nn.ModuleList(
            [self._level(i, [coarse[i] + fine[i]] * settings.num_res_blocks, coarse[i]) for i in reversed(levels)]
        )
        self.up_resamplers = nn.ModuleList([self._up(i, coarse[i], fine[i]) for i in reversed(levels)])
        self.final = self._res(2 * first, first)
        self.out = self._ops.conv(first, settings.out_channels, 1)

    @classmethod
    def from_settings(cls, settings: dict[str, Any] | TEDMSettings) -> "TEDMUNet":
        """Build the network from settings or from their JSON form."""
        return cls(TEDMSettings.model_validate(settings))

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each level is one, with the convolution that leaves it."""
        stem = ("stem",) if self.time_embed is None else ("time_embed", "stem")
        n = len(self.up_levels)
        down, up = each_of("down_levels", "down_resamplers", length=n), each_of("up_levels", "up_resamplers", length=n)
        return (stem, *down, ("middle",), *up, ("final",), ("out",))

    def parts_up_to(self, tap: int) -> tuple[str, ...]:
        """Return the names of the submodules between the middle and what a tap reads, before its level is left."""
        return super().parts_up_to(tap)[:-1]

    @property
    def n_taps(self) -> int:
        """Number of decoder blocks that can be read."""
        return len(self.up_levels)

    def tap_channels(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Return the number of features that `forward` gives for each of `taps`."""
        return tuple(self.settings.level_channels[::-1][tap] for tap in self._checked_taps(taps))

    def forward(self, x: Tensor, t: Tensor | None = None, taps: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return the output, or the features of some decoder levels.

        Args:
            x: (batch, in_channels, *spatial), sizes multiples of `divisor`.
            t: (batch,) timesteps as the network was trained with; None for a network without time.
            taps: decoder levels, 0 is the coarsest; nothing after the last one is computed.

        Returns:
            (batch, out_channels, *spatial), or a list of features (batch, channel, *coarser spatial), one a tap, in
            the order of `taps`: what the level's linear attention gives, before it is upsampled.

        Raises:
            ValueError: the size of `x` is no multiple of the divisor, a timestep is missing or not known to the
                network, or a tap does not exist.
        """
        self._check_input(x, t)
        wanted = () if taps is None else self._checked_taps(taps)
        embedding = self._embed(t)
        h, (stem, *skips) = self._encode(x, embedding)
        features: dict[int, Tensor] = {}
        for index, (level, resample) in enumerate(zip(self.up_levels, self.up_resamplers, strict=True)):
            joined = [skips.pop() for _ in range(self.settings.num_res_blocks)]
            h = self._run(level, h, embedding, joined)[-1]
            if index in wanted:
                features[index] = h
            if taps is not None and index == max(wanted):
                return [features[tap] for tap in wanted]
            h = resample(h)
        return self.out(self.final(torch.cat([h, stem], dim=1), embedding))

    def _encode(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        h = self.stem(x)
        skips = [h]
        for level, resample in zip(self.down_levels, self.down_resamplers, strict=True):
            outputs = self._run(level, h, embedding)
            skips.extend(outputs)
            h = resample(outputs[-1])
        first, attention, last = self.middle
        return last(attention(first(h, embedding)), embedding), skips

    def _run(
        self, level: nn.Module, h: Tensor, embedding: Tensor | None, joined: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        if self.settings.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(level, h, embedding, joined, use_reentrant=False)
        return level(h, embedding, joined)

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self.time_embed is None or t is None:
            return None
        dtype = next(self.time_embed.parameters()).dtype
        return self.time_embed(sinusoidal_embedding(t, self.settings.model_channels).to(dtype))

    def _level(self, level: int, in_channels: Sequence[int], out_channels: int) -> "_Level":
        settings = self.settings
        attention: nn.Module = nn.Identity()
        if level in settings.levels_with_attention:
            attention = LinearAttention(
                out_channels, num_heads=settings.num_heads, num_head_channels=settings.num_head_channels
            )
        return _Level([self._res(channels, out_channels) for channels in in_channels], attention)

    def _res(self, in_channels: int, out_channels: int) -> FiLMBlock:
        return FiLMBlock(
            self._ops,
            in_channels,
            out_channels,
            embedding_width=self._embedding_width,
            dropout=self.settings.dropout,
            num_groups=self.settings.num_groups,
        )

    def _down(self, level: int, in_channels: int, out_channels: int) -> nn.Module:
        if level == len(self.settings.level_strides):
            return self._ops.conv(in_channels, out_channels, 3, padding=1)
        stride = self.settings.level_strides[level]
        # Kernels of 4 halve an axis; an axis that keeps its size has a kernel of 3, which the same padding fits.
        kernel = tuple(step + 2 for step in stride)
        return self._ops.conv(in_channels, out_channels, kernel, stride=stride, padding=1)

    def _up(self, level: int, in_channels: int, out_channels: int) -> nn.Module:
        """Return what follows the up level: to the next finer level's grid, or a convolution at the finest."""
        conv = self._ops.conv(in_channels, out_channels, 3, padding=1)
        return conv if level == 0 else nn.Sequential(Upsample(self._ops, self.settings.level_strides[level - 1]), conv)


class _Level(nn.Module):
    """Residual blocks, then attention after the last."""

    def __init__(self, blocks: Sequence[FiLMBlock], attention: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention

    def forward(self, h: Tensor, embedding: Tensor | None, joined: Sequence[Tensor]) -> list[Tensor]:
        """Return the features after each block, the last after attention; `joined` are skips, one a block."""
        outputs = []
        for index, block in enumerate(self.blocks):
            h = block(torch.cat([h, joined[index]], dim=1) if joined else h, embedding)
            outputs.append(h)
        outputs[-1] = self.attention(h)
        return outputs
