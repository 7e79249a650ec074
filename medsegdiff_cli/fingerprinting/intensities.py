"""Intensity statistics: exact for one image, from equally many samples a case for a whole dataset (as nnU-Net)."""

from collections.abc import Sequence

import numpy as np

from medsegdiff_cli.artifacts.fingerprint import IntensityStatistics

SAMPLE_SEED = 1234
SAMPLES_PER_CASE = 50_000
# nnU-Net's limit for all cases together; it bounds the memory at 400 MB a channel.
SAMPLES_PER_DATASET = 100_000_000
_LARGEST_HISTOGRAM = 1 << 17


def statistics_of(values: np.ndarray) -> IntensityStatistics:
    """Return the exact statistics of one channel.

    Args:
        values: any shape, at least one element.
    """
    flat = values.ravel()
    low, high = flat.min(), flat.max()
    if flat.dtype.kind in "iu" and int(high) - int(low) < _LARGEST_HISTOGRAM:
        return _from_histogram(flat, int(low))
    percentiles = np.percentile(flat, (0.5, 50, 99.5))
    mean, std = float(flat.mean(dtype=np.float64)), float(flat.std(dtype=np.float64))
    return _pack(mean, std, float(low), float(high), percentiles.tolist(), flat.size)


def draw_samples(values: np.ndarray) -> np.ndarray:
    """Draw `SAMPLES_PER_CASE` voxels with replacement, the same ones in every channel and on every call.

    Args:
        values: (channel, voxel).

    Returns:
        (channel, sample) float32; no samples when there is no voxel.
    """
    n_channels, n_voxels = values.shape
    if n_voxels == 0:
        return np.zeros((n_channels, 0), np.float32)
    picked = np.random.RandomState(SAMPLE_SEED).randint(0, n_voxels, SAMPLES_PER_CASE)
    return values[:, picked].astype(np.float32)


def pooled_statistics(samples: Sequence[np.ndarray]) -> tuple[IntensityStatistics, ...]:
    """Return the statistics of each channel over all cases, each case with the same weight.

    Args:
        samples: per case (channel, sample); cases without samples are left out.

    Returns:
        One entry a channel; empty when no case has samples.
    """
    filled = [case for case in samples if case.shape[1]]
    if not filled:
        return ()
    per_case = max(1, min(SAMPLES_PER_CASE, SAMPLES_PER_DATASET // len(filled)))
    channels = range(filled[0].shape[0])
    return tuple(statistics_of(np.concatenate([case[channel, :per_case] for case in filled])) for channel in channels)


def _from_histogram(flat: np.ndarray, low: int) -> IntensityStatistics:
    """Count integers instead of sorting them: the same numbers, several times faster."""
    counts = np.bincount(flat.astype(np.int64) - low)
    values: np.ndarray = np.arange(len(counts), dtype=np.float64) + low
    n, up_to = flat.size, np.cumsum(counts)
    mean = float((counts * values).sum() / n)
    std = float(np.sqrt((counts * (values - mean) ** 2).sum() / n))
    percentiles = []
    for percent in (0.5, 50, 99.5):
        position = (n - 1) * percent / 100
        index = int(position)
        lower = values[np.searchsorted(up_to, index + 1)]
        upper = values[np.searchsorted(up_to, min(index + 2, n))]
        percentiles.append(float(lower + (upper - lower) * (position - index)))
    return _pack(mean, std, float(values[0]), float(values[-1]), percentiles, n)


def _pack(mean: float, std: float, low: float, high: float, percentiles: list[float], n: int) -> IntensityStatistics:
    return IntensityStatistics(
        mean=mean,
        std=std,
        min=low,
        max=high,
        percentile_00_5=percentiles[0],
        median=percentiles[1],
        percentile_99_5=percentiles[2],
        n_samples=n,
    )
