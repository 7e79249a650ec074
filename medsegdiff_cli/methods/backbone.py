"""Backbone: the network settings that methods share, and the one place that builds a network from them.

Four networks, one interface, `network(x, t=None, taps=None)` (see `networks.adm_unet`):

===================  ====================  ====================  ====================  ======================
setting              adm                   tedm                  imgx                  diffusers-unet2d
===================  ====================  ====================  ====================  ======================
n_dims               2, 3                  2, 3                  2, 3                  2
attention_levels     self-attention        linear attention      always one            self-attention
                                                                 transformer block at
                                                                 the coarsest level
middle attention     if any level has it   if any level has it   that block            if any level has it
num_head_channels    channels a head       channels of each of   channels of each of   channels a head
                                           4 heads (paper: 32)   8 heads (paper: 64)
strides              1 or 2 per axis       1 or 2 per axis       1 or 2 per axis       all 2
taps (0 coarsest)    decoder blocks        decoder levels,       decoder levels,       decoder levels,
                                           before upsampling     before upsampling     after upsampling
time_injection       -                     -                     after-norm or         -
                                                                 cancelled
positional_encoding  -                     -                     sinusoidal or none    -
===================  ====================  ====================  ====================  ======================

All other settings mean the same for all. The TEDM paper's network is `network: tedm, model_channels: 64,
channel_mult: [1, 2, 4, 8], attention_levels: [0, 1, 2, 3], num_head_channels: 32`. Of `imgx`, the settings of the shape
that are not given are the paper's (`OWN_SHAPES`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.diffusion.schedules import ScheduleSettings
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet
from medsegdiff_cli.networks.diffusers_unet import DiffusersUNet, DiffusersUNetSettings
from medsegdiff_cli.networks.imgx_blocks import PositionalEncoding, TimeInjection
from medsegdiff_cli.networks.imgx_unet import ImgXSettings, ImgXUNet
from medsegdiff_cli.networks.tedm_unet import TEDMSettings, TEDMUNet

Shape = TypeVar("Shape", bound=BaseModel)
NetworkName = Literal["adm", "tedm", "imgx", "diffusers-unet2d"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

# What a network has unless it is said otherwise, where that is not the defaults below.
OWN_SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "imgx": MappingProxyType(
            {
                "model_channels": 32,
                "channel_mult": (1, 2, 4, 8),
                "num_res_blocks": 2,
                "attention_levels": (),
                "num_head_channels": 64,
                "dropout": 0.1,
            }
        )
    }
)
# Settings that one network alone has, and the only value that they may have with another.
ONLY_OF_IMGX: Mapping[str, str] = MappingProxyType(
    {"time_injection": "after-norm", "positional_encoding": "sinusoidal"}
)


class BackboneError(UsageError, ValueError):
    """Settings that do not make a network together, or not for the images at hand."""


class BackboneSettings(BaseModel):
    """Width and shape of the network.

    Attributes:
        network: `adm`, the U-Net of guided diffusion (Dhariwal & Nichol 2021); `tedm`, the U-Net of TEDM (Rosnati et
            al. 2023); `imgx`, the U-Net with a transformer block of recycling (Fu et al. 2023); `diffusers-unet2d`,
            `UNet2DModel` of the diffusers library, for 2D images.
        model_channels: channels of the first level.
        channel_mult: multiple of `model_channels` per level.
        num_res_blocks: residual blocks per level on the way down (one more on the way up, but for `tedm`).
        attention_levels: levels, counted from 0 at full resolution, that have self-attention (`tedm`: linear
            attention). With none, the middle has none either. `imgx` has its transformer block at the coarsest level
            and nowhere else, whether that level is named here or none.
        num_head_channels: channels per attention head; `tedm` has 4 heads of them, `imgx` 8.
        dropout: inside residual blocks, and in the transformer block of `imgx`.
        strides: downsampling per level transition and axis; filled from the plan. `diffusers-unet2d` halves both axes
            at every transition.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        time_injection: where a timestep enters a residual block of `imgx`: `after-norm`, it scales and shifts the
            normed features; `cancelled`, it is added right before the instance norm, which subtracts it, as in the
            published code: the network cannot see the time.
        positional_encoding: of the transformer block of `imgx`: `sinusoidal` tells it the place of each voxel (the
            paper's figure), `none` does not (the published code).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    network: NetworkName = "adm"
    model_channels: int = Field(default=128, ge=1)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] = (3, 4, 5)
    num_head_channels: int = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False
    time_injection: TimeInjection = "after-norm"
    positional_encoding: PositionalEncoding = "sinusoidal"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_own_shape(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        network = values.get("network", cls.model_fields["network"].default)
        return {**own_shape(network), **values}

    @model_validator(mode="after")
    def _check_what_is_of_imgx(self) -> "BackboneSettings":
        coarsest = len(self.channel_mult) - 1
        if self.network == "imgx" and not set(self.attention_levels) <= {coarsest}:
            raise ValueError(
                f"network 'imgx' has one transformer block, at its coarsest level {coarsest}; attention_levels say "
                f"{list(self.attention_levels)}; set attention_levels=[], or network adm or tedm"
            )
        for name, only in ONLY_OF_IMGX.items():
            if self.network != "imgx" and (value := getattr(self, name)) != only:
                raise ValueError(f"{name} '{value}' is of network 'imgx', not of '{self.network}'; set {name}={only}")
        return self

    @model_validator(mode="after")
    def _check_strides(self) -> "BackboneSettings":
        if self.network != "diffusers-unet2d" or self.strides is None:
            return self
        n_levels = len(self.channel_mult)
        if len(self.strides) != n_levels - 1 or any(set(step) != {2} for step in self.strides):
            raise ValueError(
                f"network 'diffusers-unet2d' halves every axis at each of its {n_levels - 1} transitions, strides say "
                f"{[list(step) for step in self.strides]}; set fewer levels in channel_mult, or another network"
            )
        return self


class TimedBackboneSettings(BackboneSettings):
    """Settings of a network that is told timesteps; all that training from its weights must know of how it came about.

    Attributes:
        schedule: noise schedule whose indices the timesteps are; index 0 is the least noise.
    """

    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)


def own_shape(network: object) -> dict[str, Any]:
    """Return the settings that a network has unless it is said otherwise; none for one that takes the defaults."""
    return dict(OWN_SHAPES.get(network, {})) if isinstance(network, str) else {}


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
    if settings.network == "imgx":
        del shape["attention_levels"]  # its place is fixed, and checked where the settings are read
        return ImgXUNet(_checked(ImgXSettings, shape, settings.network))
    for name in ONLY_OF_IMGX:
        del shape[name]
    if settings.network == "adm":
        return ADMUNet(_checked(ADMSettings, shape, settings.network))
    if settings.network == "tedm":
        return TEDMUNet(_checked(TEDMSettings, shape, settings.network))
    del shape["strides"]  # as above
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
