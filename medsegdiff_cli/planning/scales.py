"""Scales: fixed tables of width and length, so that the same command does the same work on every machine.

`tiny` aims at 2 minutes for a whole training on two CPU cores, `small` at 20; `full` is the recipe's own network and
length, with patch and batch fitted to the memory. Nothing here is timed at run time.
"""

from dataclasses import dataclass, replace
from typing import Any

from medsegdiff_cli.artifacts.plan import Scale

HUGE = 2**62
_OF_NETWORKS = ("model_channels", "channel_mult", "num_res_blocks", "attention_levels", "num_head_channels")


@dataclass(frozen=True, kw_only=True)
class ScaleTable:
    """Width and length of one scale; None leaves the recipe's own value.

    Attributes:
        model_channels: features of the first level.
        channel_mult: features of each level, as multiples of `model_channels`.
        num_res_blocks: residual blocks a level.
        attention_levels: levels with self-attention.
        num_head_channels: channels of an attention head.
        steps: optimiser steps of a stage.
        max_patch_voxels, max_batch_voxels, max_batch: upper limits; a batch has 2 patches at least.
    """

    model_channels: int | None = None
    channel_mult: tuple[int, ...] | None = None
    num_res_blocks: int | None = None
    attention_levels: tuple[int, ...] | None = None
    num_head_channels: int | None = None
    steps: int | None = None
    max_patch_voxels: int = HUGE
    max_batch_voxels: int = HUGE
    max_batch: int = HUGE

    def network_settings(self) -> dict[str, object]:
        """Return the network's settings that the scale fixes."""
        return {name: value for name in _OF_NETWORKS if (value := getattr(self, name)) is not None}


SCALES: dict[tuple[Scale, int], ScaleTable] = {
    ("tiny", 2): ScaleTable(
        model_channels=16,
        channel_mult=(1, 2, 4),
        num_res_blocks=1,
        attention_levels=(),
        steps=200,
        max_patch_voxels=256**2,
        max_batch_voxels=2 * 256**2,
        max_batch=16,
    ),
    ("tiny", 3): ScaleTable(
        model_channels=8,
        channel_mult=(1, 2, 4),
        num_res_blocks=1,
        attention_levels=(),
        steps=200,
        max_patch_voxels=48**3,
        max_batch_voxels=2 * 48**3,
        max_batch=2,
    ),
    ("small", 2): ScaleTable(
        model_channels=16,
        channel_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        attention_levels=(),
        steps=1000,
        max_patch_voxels=256**2,
        max_batch_voxels=4 * 256**2,
        max_batch=32,
    ),
    ("small", 3): ScaleTable(
        model_channels=16,
        channel_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        attention_levels=(),
        steps=1200,
        max_patch_voxels=48**3,
        max_batch_voxels=2 * 48**3,
        max_batch=2,
    ),
    ("full", 2): ScaleTable(),
    ("full", 3): ScaleTable(),
}

# The transformer of `imgx` is at the coarsest level: a fourth level keeps it cheap, and its heads have a quarter of
# that level's features, as at the network's own size.
_IMGX: dict[tuple[Scale, int], dict[str, Any]] = {
    ("tiny", 2): {"channel_mult": (1, 2, 4, 4), "num_head_channels": 16},
    ("tiny", 3): {"channel_mult": (1, 2, 4, 4), "num_head_channels": 8},
    ("small", 2): {"num_head_channels": 32},
    ("small", 3): {"num_head_channels": 32},
}


def scale_table(scale: Scale, n_dims: int, network: str | None = None) -> ScaleTable:
    """Return the table of a scale for 2D or 3D networks; some networks have tables of their own."""
    own = _IMGX.get((scale, n_dims), {}) if network == "imgx" else {}
    return replace(SCALES[scale, n_dims], **own)
