"""ImgX U-Net: the network of "A recycling training strategy for medical image segmentation with diffusion denoising
models" (Fu et al. 2023, Figure 2), for two or three spatial axes.

Levels of residual blocks with instance norm, skips that are added instead of concatenated, strided convolutions down
and transposed ones up, and one transformer block between two residual blocks at the coarsest level. At the paper's size
(32, 64, 128, 256 channels) it has 11.6 million parameters in 2D and 32.3 million in 3D, and 1.5 million more with time.

Differs from the published code: the timestep reaches the features (`time_injection`; there the instance norm subtracts
it), voxels can know their place (`positional_encoding`, as the paper's figure has it; the code has none), strides per
axis at every level, the exact GELU, sizes that the strides divide instead of cropping.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsegdiff_cli.networks.depth import Layers, each_of
from medsegdiff_cli.networks.imgx_blocks import (
    InstanceNorm32,
    PositionalEncoding,
    TimedResBlock,
    TimeInjection,
    TransformerBlock,
    normed_resampling,
)
from medsegdiff_cli.networks.layers import SPATIAL_OPS, timestep_embedding
from medsegdiff_cli.networks.levels import check_levels, filled_strides
from medsegdiff_cli.networks.tapped_unet import TappedUNet


class ImgXSettings(BaseModel):
    """All that fixes the shape of an `ImgXUNet`; the defaults are the paper's.

    Attributes:
        n_dims: spatial axes, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        model_channels: features of a level with multiple 1.
        channel_mult: features of each level, finest first, as multiples of `model_channels`.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        num_heads: heads of the transformer block at the coarsest level.
        num_head_channels: channels of a head.
        dropout: probability, in the residual blocks and in the transformer block.
        use_time: whether the network is told a timestep; without it no embedding layer exists.
        time_injection: where the timestep enters a residual block, see `TimedResBlock`.
        positional_encoding: whether the transformer block knows the place of a voxel, see `TransformerBlock`.
        strides: 1 or 2 for each level transition and axis, finest first; None: 2 everywhere.
        gradient_checkpointing: compute the activations of a block again in the backward pass: less memory, more time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    n_dims: int = Field(ge=2, le=3)
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    model_channels: int = Field(default=32, ge=1)
    channel_mult: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    num_res_blocks: int = Field(default=2, ge=1)
    num_heads: int = Field(default=8, ge=1)
    num_head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    use_time: bool = True
    time_injection: TimeInjection = "after-norm"
    positional_encoding: PositionalEncoding = "sinusoidal"
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ImgXSettings":
        check_levels(self.level_channels, (), self.level_strides, self.n_dims)
        return self

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Features of each level, finest first."""
        return tuple(multiple * self.model_channels for multiple in self.channel_mult)

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides per level transition and axis, with the default filled in."""
        return filled_strides(self.strides, self.n_dims, len(self.channel_mult))


class ImgXUNet(TappedUNet):
    """U-Net with residual blocks, added skips, a transformer block at the bottom, and timesteps.

    Args:
        settings: the shape of the network; kept as `settings`.
    """

    settings: ImgXSettings
    input_layer: ClassVar[str] = "stem.0"
    output_layer: ClassVar[str] = "out"
    encoder_parts: ClassVar[tuple[str, ...]] = ("stem", "down_levels", "downsamplers")
    time_parts: ClassVar[tuple[str, ...]] = ()
    middle_parts: ClassVar[tuple[str, ...]] = ("bottom",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("up_levels", "upsamplers", "out")

    def __init__(self, settings: ImgXSettings) -> None:
        super().__init__()
        self.settings = settings
        self._ops = SPATIAL_OPS[settings.n_dims]
        channels, levels = settings.level_channels, range(len(settings.channel_mult))
        # As wide as the published code's, which has the features of the coarsest of its four levels.
        self._embedding_width = 8 * settings.model_channels if settings.use_time else None
        stem = self._ops.conv(settings.in_channels, channels[0], 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, InstanceNorm32(channels[0]), nn.GELU())
        self.down_levels = nn.ModuleList([self._blocks(channels[i], settings.num_res_blocks) for i in levels])
        self.downsamplers = nn.ModuleList([self._down(i) for i in levels[:-1]])
        transformer = TransformerBlock(
            channels[-1],
            num_heads=settings.num_heads,
            num_head_channels=settings.num_head_channels,
            dropout=settings.dropout,
            positional_encoding=settings.positional_encoding,
        )
        self.bottom = nn.ModuleList([self._res(channels[-1]), transformer, self._res(channels[-1])])
        # One block more than on the way down takes what came into the level.
        self.up_levels = nn.ModuleList(
            [self._blocks(channels[i], settings.num_res_blocks + 1) for i in reversed(levels)]
        )
        self.upsamplers = nn.ModuleList([self._up(i) for i in reversed(levels[:-1])])
        self.out = self._ops.conv(channels[0], settings.out_channels, 1)

    @classmethod
    def from_settings(cls, settings: dict[str, Any] | ImgXSettings) -> "ImgXUNet":
        """Build the network from settings or from their JSON form."""
        return cls(ImgXSettings.model_validate(settings))

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each level is one, with the convolution that leads to it."""
        n = len(self.up_levels)
        down, up = each_of("down_levels", length=n), each_of("up_levels", length=n)
        to_down, to_up = ((), *each_of("downsamplers", length=n - 1)), ((), *each_of("upsamplers", length=n - 1))
        way_down = tuple((*before, *level) for before, level in zip(to_down, down, strict=True))
        way_up = tuple((*before, *level) for before, level in zip(to_up, up, strict=True))
        return (("stem",), *way_down, ("bottom",), *way_up, ("out",))

    @property
    def n_taps(self) -> int:
        """Number of decoder levels that can be read."""
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
            the order of `taps`: what the level's last residual block gives, before it is upsampled.

        Raises:
            ValueError: the size of `x` is no multiple of the divisor, a timestep is missing or not known to the
                network, or a tap does not exist.
        """
        self._check_input(x, t)
        wanted = () if taps is None else self._checked_taps(taps)
        embedding = self._embed(t)
        h, skips = self._encode(x, embedding)
        features: dict[int, Tensor] = {}
        for index, level in enumerate(self.up_levels):
            if index > 0:
                h = self._run(self.upsamplers[index - 1], h)
            for block in level:
                h = self._run(block, h + skips.pop(), embedding)
            if index in wanted:
                features[index] = h
            if taps is not None and index == max(wanted):
                return [features[tap] for tap in wanted]
        return self.out(h)

    def _encode(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the bottom, and those of every layer on the way down, coarsest last."""
        h = self._run(self.stem, x)
        skips = [h]
        for index, level in enumerate(self.down_levels):
            if index > 0:
                h = self._run(self.downsamplers[index - 1], h)
                skips.append(h)
            for block in level:
                h = self._run(block, h, embedding)
                skips.append(h)
        first, transformer, last = self.bottom
        h = self._run(transformer, self._run(first, h, embedding))
        return self._run(last, h, embedding), skips

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self._embedding_width is None or t is None:
            return None
        return timestep_embedding(t, self._embedding_width).to(self.out.weight.dtype)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.settings.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _blocks(self, channels: int, number: int) -> nn.ModuleList:
        return nn.ModuleList([self._res(channels) for _ in range(number)])

    def _res(self, channels: int) -> TimedResBlock:
        return TimedResBlock(
            self._ops,
            channels,
            embedding_width=self._embedding_width,
            time_injection=self.settings.time_injection,
            dropout=self.settings.dropout,
        )

    def _down(self, level: int) -> nn.Module:
        """Return what leads from a level to the next coarser one."""
        (fine, coarse), stride = self.settings.level_channels[level : level + 2], self.settings.level_strides[level]
        return normed_resampling(self._ops.conv(fine, coarse, stride, stride=stride, bias=False), coarse)

    def _up(self, level: int) -> nn.Module:
        """Return what leads from the next coarser level to a level."""
        (fine, coarse), stride = self.settings.level_channels[level : level + 2], self.settings.level_strides[level]
        return normed_resampling(self._ops.conv_transpose(coarse, fine, stride, stride=stride, bias=False), fine)
