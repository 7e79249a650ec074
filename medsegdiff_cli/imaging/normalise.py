"""Intensity normalisation: one named scheme per channel.

Schemes are chosen by channel name as in nnU-Net, or by a recipe. Statistics of the data set come from the
fingerprint under nnU-Net's keys (mean, std, percentile_00_5, percentile_99_5). Constant images stay finite.
"""

from collections.abc import Callable, Mapping

import numpy as np

from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean

_SMALLEST_STD = 1e-8

_SCHEME_OF_CHANNEL_NAME = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
}
_BOUNDED = {"ct", "rescale_0_1", "rescale_minus1_1", "rgb_0_1"}
# Their numbers speak of the scanner's intensities, which equalisation replaces by ranks.
_SPEAKS_OF_INTENSITIES = {"ct", "zscore_dataset", "rgb_0_1"}
_STATISTICS = {
    "zscore_dataset": ("mean", "std"),
    "ct": ("mean", "std", "percentile_00_5", "percentile_99_5"),
}


def scheme_for_channel_name(name: str) -> str:
    """Return the scheme nnU-Net takes for a channel of that name (case-insensitive); z-score for unknown names."""
    return _SCHEME_OF_CHANNEL_NAME.get(name.casefold(), "zscore")


def is_bounded(scheme: str) -> bool:
    """Tell whether the scheme's output has a bounded range, so that float16 stores it well."""
    return scheme in _BOUNDED


def needs_mask(scheme: str) -> bool:
    """Tell whether the scheme is undefined without a mask."""
    return scheme == "quantile"


def takes_equalised(scheme: str) -> bool:
    """Tell whether the scheme means anything for intensities that were equalised to 0 ... 1."""
    return scheme not in _SPEAKS_OF_INTENSITIES


def equalise(values: np.ndarray, gamma: float = 1.0, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Replace every intensity by its rank: the cumulative histogram from 0 to 1, to the power `gamma`.

    `((N(v) - N(lowest)) / (N - N(lowest))) ** gamma`, where N(v) counts the voxels of at most v. Each distinct value is
    a bin of its own, so that 8, 12 and 16 bits and floating point need no number of bins. With 0.5 it is what Oh et
    al. 2020 (Deep Learning COVID-19 Features on CXR Using Limited Training Data Sets) did to chest X-rays.

    Args:
        values: (*spatial) of any real dtype.
        gamma: above 0; below 1 brightens; 1 equalises alone.
        mask: (*spatial) bool; voxels inside are counted, all are replaced. None or an empty one counts all.

    Returns:
        (*spatial) float32, a new array; 0 everywhere where all counted voxels are equal.

    Raises:
        InputDataError: a value is not finite.
    """
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise InputDataError(
            "the histogram cannot be equalised: some values are not finite", fix="run `msd check` on the images"
        )
    counted = values if mask is None or not mask.any() else values[mask]
    if not counted.size:
        return np.zeros(values.shape, np.float32)
    levels, counts = np.unique(counted, return_counts=True)
    at_most = np.cumsum(counts)
    ranks = (at_most - at_most[0]) / max(at_most[-1] - at_most[0], 1)
    table = (ranks**gamma).astype(np.float32)
    # What lies between two counted values has the rank of the lower one; what lies below all has the lowest.
    found = np.searchsorted(levels, values, side="right")
    equalised: np.ndarray = table[np.maximum(found - 1, 0)]
    return equalised


def normalise_channel(
    values: np.ndarray,
    scheme: str,
    *,
    mask: np.ndarray | None = None,
    statistics: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Normalise one channel.

    Args:
        values: (*spatial) of any real dtype.
        scheme: a key of `SCHEMES`.
        mask: (*spatial) bool. "zscore" takes its statistics inside and leaves 0 outside, "zscore_dataset" leaves 0
            outside, "quantile" takes its quantiles inside and maps all voxels; the others ignore it.
        statistics: of the data set's foreground, for "ct" and "zscore_dataset"; with any scheme, "clip_low" and
            "clip_high" bound the intensities before anything else, and "equalise_gamma" then equalises them (see
            `equalise`) where the scheme `takes_equalised`.

    Returns:
        (*spatial) float32, a new array.

    Raises:
        UsageError: unknown scheme, or a statistic is missing.
        InputDataError: the scheme cannot be applied to this image or mask.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"unknown normalisation '{scheme}'", fix=did_you_mean(scheme, SCHEMES))
    given = statistics or {}
    missing = [key for key in _STATISTICS.get(scheme, ()) if key not in given]
    if missing:
        raise UsageError(
            f"normalisation '{scheme}' lacks the data set's {', '.join(missing)}",
            fix="plan again, or give the statistics in the plan",
        )
    values = np.asarray(values)
    if "clip_low" in given:
        values = np.clip(values, given["clip_low"], given["clip_high"])
    if "equalise_gamma" in given:
        if not takes_equalised(scheme):
            raise UsageError(
                f"normalisation '{scheme}' speaks of intensities, which equalising replaces by ranks",
                fix="normalise by rescale_0_1, rescale_minus1_1, zscore or none",
            )
        values = equalise(values, given["equalise_gamma"], mask=mask)
    return SCHEMES[scheme](values, mask, given)


def _zscore(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation of this image (inside the mask)."""
    inside = values if mask is None else values[mask]
    if not inside.size:
        return np.zeros(values.shape, np.float32)
    mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    return _standardised(values, mean, std, mask)


def _zscore_dataset(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    return _standardised(values, statistics["mean"], statistics["std"], mask)


def _standardised(values: np.ndarray, mean: float, std: float, mask: np.ndarray | None) -> np.ndarray:
    out: np.ndarray = values.astype(np.float32)
    out -= np.float32(mean)
    out /= np.float32(max(std, _SMALLEST_STD))
    if mask is not None:
        out[~mask] = 0
    return out


def _ct(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    clipped: np.ndarray = values.astype(np.float32)
    np.clip(clipped, statistics["percentile_00_5"], statistics["percentile_99_5"], out=clipped)
    return _standardised(clipped, statistics["mean"], statistics["std"], None)


def _rescale_0_1(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    out: np.ndarray = values.astype(np.float32)
    low, high = out.min(), out.max()
    out -= low
    out /= max(np.float32(high - low), np.float32(_SMALLEST_STD))
    return out


def _rescale_minus1_1(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    return _rescale_0_1(values, mask, statistics) * np.float32(2) - np.float32(1)


def _rgb_0_1(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        raise InputDataError(
            f"values from {low:g} to {high:g} are not 8-bit colours",
            fix="name the channel rescale_to_0_1, or convert the images to 8 bits",
        )
    return values.astype(np.float32) / np.float32(255)


def _none(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    return values.astype(np.float32)


def _quantile(values: np.ndarray, mask: np.ndarray | None, statistics: Mapping[str, float]) -> np.ndarray:
    """Map the 1 % and 99 % quantiles of the masked voxels to -1 and 1 (Eq. 5 and 6 of the TEDM paper)."""
    if mask is None:
        raise InputDataError(
            "the quantile normalisation needs a mask and the case has none",
            fix="put body masks into masksTr, masksTs or masksUn (when predicting: name their folder with --masks), "
            "or choose another normalisation",
        )
    if not mask.any():
        raise InputDataError("the normalisation mask is empty", fix="correct the mask or leave the case out")
    q_1, q_99 = np.quantile(values[mask].astype(np.float64), (0.01, 0.99))
    if q_1 == q_99:
        raise InputDataError(
            f"the 1 % and 99 % quantiles inside the mask are both {q_1:g}",
            fix="look at image and mask: the masked region is constant",
        )
    a = 2 / (q_99 - q_1)
    b = 1 - a * q_99
    return (a * values + b).astype(np.float32)


SCHEMES: dict[str, Callable[[np.ndarray, np.ndarray | None, Mapping[str, float]], np.ndarray]] = {
    "zscore": _zscore,
    "zscore_dataset": _zscore_dataset,
    "ct": _ct,
    "rescale_0_1": _rescale_0_1,
    "rescale_minus1_1": _rescale_minus1_1,
    "rgb_0_1": _rgb_0_1,
    "none": _none,
    "quantile": _quantile,
}
