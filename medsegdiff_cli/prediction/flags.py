"""Flags: sentences on a predicted case that a person should look at."""

from collections.abc import Mapping, Sequence

import numpy as np

from medsegdiff_cli.artifacts.plan import ChannelPlan

LOW_AGREEMENT = 0.7
_LARGEST_SHARE_OUT_OF_RANGE = 0.01


def flags_of(
    image: np.ndarray, channels: Sequence[ChannelPlan], voxels: Mapping[str, int], agreement: float | None
) -> tuple[str, ...]:
    """Return what is unusual about a case.

    Args:
        image: native intensities (channel, *spatial).
        channels: the plan's, with the training images' intensity range.
        voxels: predicted voxels per foreground class.
        agreement: mean Dice of the members with the fused prediction.
    """
    flags = []
    if not any(voxels.values()):
        flags.append("empty prediction")
    for values, channel in zip(image, channels, strict=True):
        if float(values.min()) == float(values.max()):
            flags.append(f"channel '{channel.name}' is constant ({float(values.min()):g})")
        if channel.training_range is None:
            continue
        low, high = channel.training_range
        outside = float(np.mean((values < low) | (values > high)))
        if outside > _LARGEST_SHARE_OUT_OF_RANGE:
            flags.append(
                f"{100 * outside:.0f} % of channel '{channel.name}' lie outside the training images' range "
                f"{low:g} to {high:g}"
            )
    if agreement is not None and agreement < LOW_AGREEMENT:
        flags.append(f"low agreement between members ({agreement:.2f})")
    return tuple(flags)
