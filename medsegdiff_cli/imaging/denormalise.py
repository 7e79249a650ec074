"""The way back from normalised intensities to those of the files, for images that never had a file.

Where normalisation took its numbers from the data set (`ct`, `zscore_dataset`, `rgb_0_1`, `none`), the plan has them
and the way back is exact. Where it took them from each image, a typical image's numbers stand in for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

_EXACT = ("ct", "zscore_dataset", "rgb_0_1", "none")
# Of a z-score: how many deviations the range of intensities is taken to span.
_DEVIATIONS = 6.0


@dataclass(frozen=True, kw_only=True)
class IntensityScale:
    """intensity = slope x normalised + offset, kept from `low` to `high`.

    Attributes:
        source: of the numbers: the "plan" (exact), typical "training images", the training images' "range", or
            "nothing": intensities stay normalised.
    """

    slope: float
    offset: float
    low: float | None = None
    high: float | None = None
    source: Literal["plan", "training images", "range", "nothing"]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return intensities, float32 of the same shape."""
        out: np.ndarray = np.asarray(values, dtype=np.float32) * np.float32(self.slope) + np.float32(self.offset)
        return out if self.low is None or self.high is None else out.clip(self.low, self.high)


def intensity_scale(
    scheme: str,
    statistics: Mapping[str, float],
    training_range: tuple[float, float] | None,
    typical: tuple[float, float] | None = None,
) -> IntensityScale:
    """Return the way back from a scheme of `imaging.normalise`.

    Args:
        statistics: the channel's in the plan.
        training_range: smallest and largest intensity of the training images.
        typical: slope and offset of a typical training image, see `fitted`.
    """
    low, high = _bounds(scheme, statistics, training_range)
    is_ranked = "equalise_gamma" in statistics  # ranks have no way back but a typical one
    if scheme in _EXACT and not is_ranked:
        slope, offset = {"rgb_0_1": (255.0, 0.0), "none": (1.0, 0.0)}.get(scheme, (None, None))
        if slope is None or offset is None:
            slope, offset = statistics["std"], statistics["mean"]
        return IntensityScale(slope=slope, offset=offset, low=low, high=high, source="plan")
    if typical is not None:
        return IntensityScale(slope=typical[0], offset=typical[1], low=low, high=high, source="training images")
    if low is None or high is None:
        return IntensityScale(slope=1.0, offset=0.0, source="nothing")
    if scheme == "rescale_0_1" or (is_ranked and scheme == "none"):
        slope, offset = high - low, low
    else:
        slope = (high - low) / (_DEVIATIONS if scheme == "zscore" else 2)
        offset = (high + low) / 2
    return IntensityScale(slope=slope, offset=offset, low=low, high=high, source="range")


def fitted(native: np.ndarray, normalised: np.ndarray) -> tuple[float, float] | None:
    """Return slope and offset with which one image's normalised voxels come back; None for a constant image.

    It is exact where normalisation was linear, and else keeps mean and standard deviation.
    """
    spread = float(normalised.std(dtype=np.float64))
    if not spread > 0:
        return None
    slope = float(native.std(dtype=np.float64)) / spread
    return slope, float(native.mean(dtype=np.float64)) - slope * float(normalised.mean(dtype=np.float64))


def _bounds(
    scheme: str, statistics: Mapping[str, float], training_range: tuple[float, float] | None
) -> tuple[float | None, float | None]:
    if scheme == "ct":
        return statistics["percentile_00_5"], statistics["percentile_99_5"]
    if "clip_low" in statistics:
        return statistics["clip_low"], statistics["clip_high"]
    return training_range if training_range is not None else (None, None)
