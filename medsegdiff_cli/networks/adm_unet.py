"""ADM U-Net: the network of guided diffusion (Dhariwal & Nichol 2021), for two or three spatial axes.

Parameter names and shapes in 2D are those of the published code (`input_blocks.1.0.in_layers.0.weight`,
`middle_block.1.qkv.weight`, ...): public unconditional weights load with `load_state_dict` once they have been
converted to safetensors. Not built: class embeddings of class-conditional models.

Differs from the published code: strides may differ per axis, time is optional, attention in the middle goes away
with all other attention, and with few channels norms and heads use the greatest common divisor instead of failing.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsegdiff_cli.networks.blocks import AttentionBlock, EmbedSequential, ResBlock
from medsegdiff_cli.networks.depth import Layers, each_of
from medsegdiff_cli.networks.layers import (
    SPATIAL_OPS,
    Downsample,
    Upsample,
    group_norm,
    timestep_embedding,
    zero_init,
)
from medsegdiff_cli.networks.levels import check_levels, filled_strides
from medsegdiff_cli.networks.tapped_unet import TappedUNet


class ADMSettings(BaseModel):
    """All that fixes the shape of an `ADMUNet`.

    Attributes:
        n_dims: spatial axes, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output; twice the image's for a model that learns its variance.
        model_channels: features of a level with multiple 1.
        channel_mult: features of each level, finest first, as multiples of `model_channels`.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        attention_levels: levels with self-attention, 0 is the finest.
        middle_attention: self-attention between the two middle blocks; None: when any level has attention.
        num_head_channels: channels of an attention head.
        dropout: probability, in the residual blocks.
        use_time: whether the network is told a timestep; without it no embedding layer exists.
        resblock_updown: residual blocks resample; else strided convolutions, and repetition with a convolution.
        use_scale_shift_norm: the timestep scales and shifts normed features; else it is added before the norm.
        strides: 1 or 2 for each level transition and axis, finest first; None: 2 everywhere.
        gradient_checkpointing: compute the activations of a block again in the backward pass: less memory, more time.
        num_groups: groups of a group norm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    n_dims: int = Field(ge=2, le=3)
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    model_channels: int = Field(default=128, ge=1)
    channel_mult: tuple[int | float, ...] = Field(default=(1, 1, 2, 2, 4, 4), min_length=1)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] = (3, 4, 5)
    middle_attention: bool | None = None
    num_head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    use_time: bool = True
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False
    num_groups: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "ADMSettings":
        check_levels(self.level_channels, self.attention_levels, self.level_strides, self.n_dims)
        return self

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Features of each level, finest first."""
        return tuple(int(multiple * self.model_channels) for multiple in self.channel_mult)

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides per level transition and axis, with the default filled in."""
        return filled_strides(self.strides, self.n_dims, len(self.channel_mult))


class ADMUNet(TappedUNet):
    """U-Net with residual blocks, self-attention and timesteps.

    Args:
        settings: the shape of the network; kept as `settings`.
    """

    settings: ADMSettings
    input_layer: ClassVar[str] = "input_blocks.0.0"
    output_layer: ClassVar[str] = "out.2"
    encoder_parts: ClassVar[tuple[str, ...]] = ("time_embed", "input_blocks")
    time_parts: ClassVar[tuple[str, ...]] = ("time_embed",)
    middle_parts: ClassVar[tuple[str, ...]] = ("middle_block",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("output_blocks", "out")

    def __init__(self, settings: ADMSettings) -> None:
        super().__init__()
        self.settings = settings
        self._ops = SPATIAL_OPS[settings.n_dims]
        width = 4 * settings.model_channels
        self._embedding_width = width if settings.use_time else None
        self.time_embed: nn.Module | None = None
        if settings.use_time:
            self.time_embed = nn.Sequential(
                nn.Linear(settings.model_channels, width), nn.SiLU(), nn.Linear(width, width)
            )
        self.input_blocks, skip_channels = self._encoder()
        self.middle_block = self._middle(skip_channels[-1])
        self.output_blocks, self._tap_channels = self._decoder(skip_channels)
        finest = settings.level_channels[0]
        self.out = nn.Sequential(
            group_norm(finest, settings.num_groups),
            nn.SiLU(),
            zero_init(self._ops.conv(finest, settings.out_channels, 3, padding=1)),
        )

    @classmethod
    def from_settings(cls, settings: dict[str, Any] | ADMSettings) -> "ADMUNet":
        """Build the network from settings or from their JSON form."""
        return cls(ADMSettings.model_validate(settings))

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each block is one."""
        stem = ("input_blocks.0",) if self.time_embed is None else ("time_embed", "input_blocks.0")
        down, up = each_of("input_blocks", length=len(self.input_blocks)), len(self.output_blocks)
        return (stem, *down[1:], ("middle_block",), *each_of("output_blocks", length=up), ("out",))

    @property
    def n_taps(self) -> int:
        """Number of decoder blocks that can be read."""
        return len(self.output_blocks)

    def tap_channels(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Return the number of features that `forward` gives for each of `taps`."""
        return tuple(self._tap_channels[tap] for tap in self._checked_taps(taps))

    def forward(self, x: Tensor, t: Tensor | None = None, taps: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return the output, or the features after some decoder blocks.

        Args:
            x: (batch, in_channels, *spatial), sizes multiples of `divisor`.
            t: (batch,) timesteps as the network was trained with; None for a network without time.
            taps: indices of `output_blocks`, 0 is the coarsest; blocks after the last one are not computed.

        Returns:
            (batch, out_channels, *spatial), or a list of features (batch, channel, *coarser spatial), one a tap, in
            the order of `taps`. The last block of a level but the finest upsamples, its features are of the finer grid.

        Raises:
            ValueError: the size of `x` is no multiple of the divisor, a timestep is missing or not known to the
                network, or a tap does not exist.
        """
        self._check_input(x, t)
        wanted = () if taps is None else self._checked_taps(taps)
        embedding = self._embed(t)
        h, skips = self._encode(x, embedding)
        features: dict[int, Tensor] = {}
        for index, block in enumerate(self.output_blocks):
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), embedding)
            if index in wanted:
                features[index] = h
            if taps is not None and index == max(wanted):
                return [features[tap] for tap in wanted]
        return self.out(h)

    def _encode(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        h, skips = x, []
        for block in self.input_blocks:
            h = self._run(block, h, embedding)
            skips.append(h)
        return self._run(self.middle_block, h, embedding), skips

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self.time_embed is None or t is None:
            return None
        dtype = next(self.time_embed.parameters()).dtype
        return self.time_embed(timestep_embedding(t, self.settings.model_channels).to(dtype))

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor | None) -> Tensor:
        if self.settings.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)

    def _encoder(self) -> tuple[nn.ModuleList, list[int]]:
        """Return the blocks on the way down, and the features that each of them hands over."""
        settings = self.settings
        channels = settings.level_channels[0]
        first = self._ops.conv(settings.in_channels, channels, 3, padding=1)
        blocks, skip_channels = [EmbedSequential(first)], [channels]
        for level, width in enumerate(settings.level_channels):
            for _ in range(settings.num_res_blocks):
                blocks.append(EmbedSequential(self._res(channels, width), *self._attention(level)))
                skip_channels.append(channels := width)
            if level < len(settings.level_strides):
                blocks.append(EmbedSequential(self._down(channels, settings.level_strides[level])))
                skip_channels.append(channels)
        return nn.ModuleList(blocks), skip_channels

    def _middle(self, channels: int) -> EmbedSequential:
        settings = self.settings
        with_attention = settings.middle_attention
        if with_attention is None:
            with_attention = bool(settings.attention_levels)
        # Identity keeps the names of the residual blocks the same with and without attention.
        between = self._attention_block(channels) if with_attention else nn.Identity()
        return EmbedSequential(self._res(channels, channels), between, self._res(channels, channels))

    def _decoder(self, skip_channels: list[int]) -> tuple[nn.ModuleList, tuple[int, ...]]:
        """Return the blocks on the way up, and the features of each of them."""
        settings = self.settings
        remaining, blocks, tap_channels = list(skip_channels), [], []
        channels = remaining[-1]
        for level, width in reversed(list(enumerate(settings.level_channels))):
            for i in range(settings.num_res_blocks + 1):
                layers = [self._res(channels + remaining.pop(), width), *self._attention(level)]
                channels = width
                if level > 0 and i == settings.num_res_blocks:
                    layers.append(self._up(channels, settings.level_strides[level - 1]))
                blocks.append(EmbedSequential(*layers))
                tap_channels.append(channels)
        return nn.ModuleList(blocks), tuple(tap_channels)

    def _res(self, in_channels: int, out_channels: int, **resampling: tuple[int, ...]) -> ResBlock:
        settings = self.settings
        return ResBlock(
            self._ops,
            in_channels,
            out_channels,
            embedding_width=self._embedding_width,
            dropout=settings.dropout,
            num_groups=settings.num_groups,
            use_scale_shift_norm=settings.use_scale_shift_norm,
            **resampling,
        )

    def _down(self, channels: int, strides: tuple[int, ...]) -> nn.Module:
        if self.settings.resblock_updown:
            return self._res(channels, channels, down=strides)
        return Downsample(self._ops, strides, channels)

    def _up(self, channels: int, strides: tuple[int, ...]) -> nn.Module:
        if self.settings.resblock_updown:
            return self._res(channels, channels, up=strides)
        return Upsample(self._ops, strides, channels)

    def _attention(self, level: int) -> list[nn.Module]:
        present = level in self.settings.attention_levels
        return [self._attention_block(self.settings.level_channels[level])] if present else []

    def _attention_block(self, channels: int) -> AttentionBlock:
        settings = self.settings
        return AttentionBlock(channels, num_head_channels=settings.num_head_channels, num_groups=settings.num_groups)


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable and frozen parameters; works on the meta device."""
    return sum(parameter.numel() for parameter in network.parameters())
