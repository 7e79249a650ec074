"""Backbone: the network settings that methods share, and the one place that builds a network from them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet


class BackboneSettings(BaseModel):
    """Width and shape of the network.

    Attributes:
        network: `adm`, the U-Net of guided diffusion (Dhariwal & Nichol 2021).
        model_channels: channels of the first level.
        channel_mult: multiple of `model_channels` per level.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_levels: levels, counted from 0 at full resolution, that have self-attention.
        num_head_channels: channels per attention head.
        dropout: inside residual blocks.
        strides: downsampling per level transition and axis; filled from the plan.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    network: Literal["adm"] = "adm"
    model_channels: int = Field(default=128, ge=1)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = Field(default=2, ge=1)
    attention_levels: tuple[int, ...] = (3, 4, 5)
    num_head_channels: int = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    strides: tuple[tuple[int, ...], ...] | None = None
    gradient_checkpointing: bool = False


def build_backbone(
    settings: BackboneSettings, *, n_dims: int, in_channels: int, out_channels: int, use_time: bool
) -> nn.Module:
    """Build the network that `settings` describe.

    Args:
        use_time: whether the network is told a timestep.

    Raises:
        UsageError: settings that contradict each other, such as attention on a level that does not exist.
    """
    shared = settings.model_dump(include=set(BackboneSettings.model_fields) - {"network"})
    sizes = {"n_dims": n_dims, "in_channels": in_channels, "out_channels": out_channels, "use_time": use_time}
    return ADMUNet(validate(ADMSettings, {**shared, **sizes}, "settings of the network"))
