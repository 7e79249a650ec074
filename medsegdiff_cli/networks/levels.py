"""Levels: what every U-Net's settings say about resolutions, with the defaults filled in and the checks made once."""

import math
from collections.abc import Sequence

Strides = tuple[tuple[int, ...], ...]


def filled_strides(strides: Strides | None, n_dims: int, n_levels: int) -> Strides:
    """Return the strides per level transition and axis; None halves every axis at every transition."""
    return ((2,) * n_dims,) * (n_levels - 1) if strides is None else strides


def total_stride(strides: Strides, n_dims: int) -> tuple[int, ...]:
    """Return the product of the strides per axis, by which every spatial size must be divisible."""
    return tuple(math.prod(step[axis] for step in strides) for axis in range(n_dims))


def check_levels(channels: Sequence[int], attention_levels: Sequence[int], strides: Strides, n_dims: int) -> None:
    """Check that the settings of the levels fit each other.

    Args:
        channels: features of each level, finest first.

    Raises:
        ValueError: a level without channels, attention on a level that does not exist, or strides of a wrong number.
    """
    n_levels = len(channels)
    if min(channels) < 1:
        raise ValueError(f"channel_mult leaves a level without channels: {tuple(channels)}")
    if unknown := sorted(set(attention_levels) - set(range(n_levels))):
        raise ValueError(f"attention_levels {unknown} do not exist: the network has levels 0 to {n_levels - 1}")
    if len(strides) != n_levels - 1:
        raise ValueError(f"{len(strides)} strides for {n_levels - 1} transitions between levels")
    if any(len(step) != n_dims or not set(step) <= {1, 2} for step in strides):
        raise ValueError(f"strides {strides}: each needs {n_dims} numbers, all 1 or 2")
