"""Backbone: the network settings that methods share, and the one place that builds a network from them.

Three networks, one interface, `network(x, t=None, taps=None)` (see `networks.adm_unet`):

==================  =========================  ==========================  ===============================
setting             adm                        tedm                        diffusers-unet2d
==================  =========================  ==========================  ===============================
n_dims              2, 3                       2, 3                        2
attention_levels    self-attention             linear attention            self-attention
middle attention    if any level has attention, in all three
num_head_channels   channels a head            channels of each of 4       channels a head
                                               heads (paper: 32)
strides             1 or 2 per axis            1 or 2 per axis             all 2
taps (0 coarsest)   decoder blocks             decoder levels,             decoder levels,
                                               before upsampling           after upsampling
==================  =========================  ==========================  ===============================

All other settings mean the same for all. The TEDM paper's network is `network: tedm, model_channels: 64,
channel_mult: [1, 2, 4, 8], attention_levels: [0, 1, 2, 3], num_head_channels: 32`.
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet
from medsegdiff_cli.networks.diffusers_unet import DiffusersUNet, DiffusersUNetSettings
from medsegdiff_cli.networks.tedm_unet import TEDMSettings, TEDMUNet

Shape = TypeVar("Shape", bound=BaseModel)


class BackboneError(UsageError, ValueError):
    """Settings that do not make a network together, or not for the images at hand."""


class BackboneSettings(BaseModel):
    """Width and shape of the network.

    Attributes:
        network: `adm`, the U-Net of guided diffusion (Dhariwal & Nichol 2021); `tedm`, the U-Net of TEDM (Rosnati et
            al. 2023); `diffusers-unet2d`, `UNet2DModel` of the diffusers library, for 2D images.
        model_channels: channels of the first level.
        channel_mult: multiple of `model_channels` per level.
        num_res_blocks: residual blocks per level on the way down (one more on the way up, but for `tedm`).
        attention_levels: levels, counted from 0 at full resolution, that have self-attention (`tedm`: linear
            attention). With none, the middle has none either.
        num_head_channels: channels per attention head; `tedm` has 4 heads of them.
        dropout: inside residual blocks.
        strides: downsampling per level transition and axis; filled from the plan. `diffusers-unet2d` halves both axes
            at every transition.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    network: Literal["adm", "tedm", "diffusers-unet2d"] = "adm"
    model_channels: int = Field(default=128, ge=1)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] = (3, 4, 5)
    num_head_channels: int = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _check_network(self) -> "BackboneSettings":
        if self.network != "diffusers-unet2d" or self.strides is None:
            return self
        n_levels = len(self.channel_mult)
        if len(self.strides) != n_levels - 1 or any(set(step) != {2} for step in self.strides):
            raise ValueError(
                f"network 'diffusers-unet2d' halves every axis at each of its {n_levels - 1} transitions, strides say "
                f"{[list(step) for step in self.strides]}; set fewer levels in channel_mult, or network adm or tedm"
            )
        return self


def build_backbone(
    settings: BackboneSettings, *, n_dims: int, in_channels: int, out_channels: int, use_time: bool
) -> nn.Module:
    """Build the network that `settings` describe.

    Args:
        use_time: whether the network is told a timestep.

    Raises:
        BackboneError: the settings contradict each other, or the network does not exist for `n_dims`; it is a
            `UsageError` and a `ValueError`.
    """
    shape: dict[str, Any] = {
        "n_dims": n_dims,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "use_time": use_time,
        **settings.model_dump(include=set(BackboneSettings.model_fields) - {"network"}),
    }
    if settings.network == "adm":
        return ADMUNet(_checked(ADMSettings, shape, settings.network))
    if settings.network == "tedm":
        return TEDMUNet(_checked(TEDMSettings, shape, settings.network))
    # Its strides are fixed, and checked where the settings are read.
    del shape["strides"]
    return DiffusersUNet(_checked(DiffusersUNetSettings, shape, settings.network))


def default_taps(settings: BackboneSettings) -> tuple[int, ...]:
    """Return one decoder block of each resolution for pixel classifiers to read, coarsest first.

    Of `adm` a level's last block that does not upsample; the others have one tap a level.
    """
    n_levels = len(settings.channel_mult)
    if settings.network != "adm":
        return tuple(range(n_levels))
    a_level = settings.num_res_blocks + 1
    return (*(a_level * level + settings.num_res_blocks - 1 for level in range(n_levels - 1)), a_level * n_levels - 1)


def _checked(model: type[Shape], shape: dict[str, Any], network: str) -> Shape:
    return validate(model, shape, f"settings of the network '{network}'", BackboneError)
