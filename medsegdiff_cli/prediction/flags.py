"""Flags: sentences on a predicted case that a person should look at."""

from collections.abc import Mapping, Sequence

import numpy as np

from medsegdiff_cli.artifacts.plan import ChannelPlan
from medsegdiff_cli.imaging.grid_checks import notes_on
from medsegdiff_cli.imaging.image import Image

LOW_AGREEMENT = 0.7
_LARGEST_SHARE_OUT_OF_RANGE = 0.01
# Hounsfield units beside values of 0 to 1 span a three-thousandth; a dim scan beside a bright one several hundredths.
_SMALLEST_SPAN = 0.005
_TAILS_PERCENT = (0.5, 99.5)
_MOST_SAMPLES = 1_000_000


def flags_of(
    image: Image, channels: Sequence[ChannelPlan], voxels: Mapping[str, int], agreement: float | None
) -> tuple[str, ...]:
    """Return what is unusual about a predicted case.

    Args:
        image: native intensities.
        channels: the plan's, with the training images' intensity range.
        voxels: predicted voxels per foreground class.
        agreement: mean Dice of the members with the fused prediction.
    """
    flags = ["empty prediction"] if not any(voxels.values()) else []
    flags += image_flags(image, channels)
    if agreement is not None and agreement < LOW_AGREEMENT:
        flags.append(f"low agreement between members ({agreement:.2f})")
    return tuple(flags)


def image_flags(image: Image, channels: Sequence[ChannelPlan]) -> tuple[str, ...]:
    """Return what is unusual about an image for a model: its grid's origin, and intensities unlike the training's."""
    flags = list(notes_on(image.geometry))
    for values, channel in zip(image.array, channels, strict=True):
        if float(values.min()) == float(values.max()):
            flags.append(f"channel '{channel.name}' is constant ({float(values.min()):g})")
        elif channel.training_range is not None:
            flags += _range_flags(values, channel, *channel.training_range)
    return tuple(flags)


def _range_flags(values: np.ndarray, channel: ChannelPlan, low: float, high: float) -> list[str]:
    name = channel.name
    trained = f"the training images' range {low:g} to {high:g}"
    outside = float(np.mean((values < low) | (values > high)))
    if outside > _LARGEST_SHARE_OUT_OF_RANGE:
        return [f"{100 * outside:.0f} % of channel '{name}' lie outside {trained}"]
    if not channel.statistics:
        return []  # each image is normalised by its own intensities: their unit does not matter
    bottom, top = (float(v) for v in np.percentile(values.ravel()[:: 1 + values.size // _MOST_SAMPLES], _TAILS_PERCENT))
    # A mask's worth of voxels in a dark image may have equal percentiles: then the whole range counts.
    bottom, top = (bottom, top) if top > bottom else (float(values.min()), float(values.max()))
    if top - bottom < _SMALLEST_SPAN * (high - low):
        return [f"channel '{name}' spans {bottom:g} to {top:g}, next to nothing of {trained}"]
    return []
