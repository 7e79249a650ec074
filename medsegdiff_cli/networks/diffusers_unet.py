"""diffusers' `UNet2DModel` as a backbone, in 2D: the network that most published image diffusion code builds on.

The blocks are diffusers' own, in the configuration of its DDPM checkpoints (strided convolutions, the timestep added
before a norm), so that weights of `UNet2DModel` fit `unet` under the same names. Building one imports diffusers, which
takes seconds; importing this module does not.

Traps that the mapping avoids: `attention_head_dim` is the channels of a head, and diffusers floors the number of
heads; a group norm with one channel a group would cancel the added timestep, so groups hold two channels at least.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from medsegdiff_cli.networks.depth import Layers, each_of
from medsegdiff_cli.networks.tapped_unet import TappedUNet


class DiffusersUNetSettings(BaseModel):
    """All that fixes the shape of a `DiffusersUNet`.

    Attributes:
        n_dims: spatial axes; only 2 exist.
        in_channels: channels of the input.
        out_channels: channels of the output.
        model_channels: features of a level with multiple 1; even.
        channel_mult: features of each level, finest first, as multiples of `model_channels`.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        attention_levels: levels with self-attention, 0 is the finest; with none, the middle has none either.
        num_head_channels: channels of an attention head; its gcd with the channels of the levels with attention.
        dropout: probability, in the residual blocks.
        use_time: whether the network is told a timestep; without it no embedding layer exists.
        gradient_checkpointing: compute activations again in the backward pass: less memory, more time.
        num_groups: groups of a group norm, or fewer when they do not divide all channels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    n_dims: int
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    model_channels: int = Field(default=128, ge=2, multiple_of=2)
    channel_mult: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4, 4), min_length=1)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] = (3, 4, 5)
    num_head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    use_time: bool = True
    gradient_checkpointing: bool = False
    num_groups: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "DiffusersUNetSettings":
        levels = range(len(self.channel_mult))
        if self.n_dims != 2:
            raise ValueError(f"n_dims {self.n_dims}: diffusers' UNet2DModel has 2 spatial axes")
        if min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {self.channel_mult} leaves a level without channels")
        if unknown := sorted(set(self.attention_levels) - set(levels)):
            raise ValueError(f"attention_levels {unknown} do not exist: the network has levels 0 to {levels[-1]}")
        return self

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Features of each level, finest first."""
        return tuple(multiple * self.model_channels for multiple in self.channel_mult)


class DiffusersUNet(TappedUNet):
    """`UNet2DModel` with taps, early exit and, if wanted, without time; the model itself is `unet`.

    Args:
        settings: the shape of the network; kept as `settings`.
    """

    settings: DiffusersUNetSettings
    input_layer: ClassVar[str] = "unet.conv_in"
    output_layer: ClassVar[str] = "unet.conv_out"
    encoder_parts: ClassVar[tuple[str, ...]] = ("unet.time_embedding", "unet.conv_in", "unet.down_blocks")
    time_parts: ClassVar[tuple[str, ...]] = ("unet.time_embedding",)
    middle_parts: ClassVar[tuple[str, ...]] = ("unet.mid_block",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("unet.up_blocks", "unet.conv_norm_out", "unet.conv_out")

    def __init__(self, settings: DiffusersUNetSettings) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.settings = settings
        channels, levels = settings.level_channels, range(len(settings.channel_mult))
        attended = [level in settings.attention_levels for level in levels]
        at_attention = [width for width, here in zip(channels, attended, strict=True) if here]
        # diffusers has one size of heads and groups for all levels; the middle works at the coarsest one's channels.
        head = math.gcd(settings.num_head_channels, channels[-1], *at_attention)
        groups = math.gcd(settings.num_groups, *(width // 2 for width in channels))
        self.unet = UNet2DModel(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            block_out_channels=channels,
            layers_per_block=settings.num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attended),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)),
            add_attention=any(attended),
            attention_head_dim=head,
            norm_num_groups=groups,
            dropout=settings.dropout,
        )
        if not settings.use_time:
            self._forget_time()
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    @classmethod
    def from_settings(cls, settings: dict[str, Any] | DiffusersUNetSettings) -> "DiffusersUNet":
        """Build the network from settings or from their JSON form."""
        return cls(DiffusersUNetSettings.model_validate(settings))

    @property
    def divisor(self) -> tuple[int, ...]:
        """Total stride per axis: every spatial size must be a multiple of it."""
        return (2 ** (len(self.settings.channel_mult) - 1),) * 2

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each of diffusers' blocks, a level, is one."""
        unet = self.unet
        stem = ("unet.conv_in",) if unet.time_embedding is None else ("unet.time_embedding", "unet.conv_in")
        down, up = each_of("unet.down_blocks", length=len(unet.down_blocks)), len(unet.up_blocks)
        up_blocks = each_of("unet.up_blocks", length=up)
        return (stem, *down, ("unet.mid_block",), *up_blocks, ("unet.conv_norm_out", "unet.conv_out"))

    @property
    def n_taps(self) -> int:
        """Number of decoder blocks that can be read."""
        return len(self.unet.up_blocks)

    def tap_channels(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Return the number of features that `forward` gives for each of `taps`."""
        return tuple(self.settings.level_channels[::-1][tap] for tap in self._checked_taps(taps))

    def forward(self, x: Tensor, t: Tensor | None = None, taps: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return the output, or the features after some decoder levels.

        Args:
            x: (batch, in_channels, y, x), sizes multiples of `divisor`.
            t: (batch,) timesteps as the network was trained with; None for a network without time.
            taps: indices of `unet.up_blocks`, 0 is the coarsest; blocks after the last one are not computed.

        Returns:
            (batch, out_channels, y, x), or a list of features (batch, channel, *coarser spatial), one a tap, in the
            order of `taps`. All blocks but the last upsample: tap 0 is of the second coarsest grid.

        Raises:
            ValueError: the size of `x` is no multiple of the divisor, a timestep is missing or not known to the
                network, or a tap does not exist.
        """
        self._check_input(x, t)
        wanted = () if taps is None else self._checked_taps(taps)
        unet, embedding = self.unet, self._embed(t)
        h, skips = self._encode(x, embedding)
        features: dict[int, Tensor] = {}
        for index, block in enumerate(unet.up_blocks):
            n_joined = len(block.resnets)
            joined, skips = tuple(skips[-n_joined:]), skips[:-n_joined]
            h = block(h, joined, embedding)
            if index in wanted:
                features[index] = h
            if taps is not None and index == max(wanted):
                return [features[tap] for tap in wanted]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))

    def _encode(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        h = self.unet.conv_in(x)
        skips = [h]
        for block in self.unet.down_blocks:
            h, outputs = block(hidden_states=h, temb=embedding)
            skips.extend(outputs)
        return self.unet.mid_block(h, embedding), skips

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        code = self.unet.time_proj(t)
        return self.unet.time_embedding(code.to(self.unet.conv_in.weight.dtype))

    def _forget_time(self) -> None:
        """Remove every layer that a timestep passes, so that no parameter is left untrained."""
        self.unet.time_embedding = None
        for module in self.unet.modules():
            if getattr(module, "time_emb_proj", None) is not None:
                module.time_emb_proj = None
