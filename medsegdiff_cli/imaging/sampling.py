"""Sampling: where the voxels of one grid look in another, and decisions taken without interpolating everything.

Grids share their outer voxel edges: output i of m looks at input coordinate (i + 0.5) * n / m - 0.5, clamped to the
outermost voxel centres.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

_SLAB_VOXELS = 1 << 19
_MIXED_VOXELS = 1 << 15  # evaluated at once: their corners fit the cache, and bound the memory

# Gets the flat input indices of the 2**k corners of some voxels and the k fractions, returns their decisions.
Resolve = Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class AxisSampling:
    """Where the outputs along one axis look in the input.

    Attributes:
        lower: input index per output.
        fraction: float64 weight of input `lower + 1` per output; None when `lower` alone counts.
    """

    lower: np.ndarray
    fraction: np.ndarray | None


def linear_sampling(n: int, m: int) -> AxisSampling:
    """Return the linear resize of n voxels to m."""
    if n in (1, m):
        return nearest_sampling(n, m)
    return sampling_at(sampling_coordinates(n, m), 0, n)


def nearest_sampling(n: int, m: int) -> AxisSampling:
    """Return the nearest-voxel resize of n voxels to m."""
    lower = np.floor(sampling_coordinates(n, m) + 0.5).astype(np.int64)
    return AxisSampling(lower=lower.clip(0, n - 1), fraction=None)


def sampling_coordinates(n: int, m: int) -> np.ndarray:
    """Return the unclamped input coordinate of each of m outputs."""
    return (np.arange(m) + 0.5) * (n / m) - 0.5


def sampling_at(coordinates: np.ndarray, start: int, stop: int) -> AxisSampling:
    """Return linear sampling at `coordinates` clamped to the input voxels start..stop - 1 (two or more)."""
    inside = coordinates.clip(start, stop - 1)
    lower = np.floor(inside).astype(np.int64).clip(start, stop - 2)
    return AxisSampling(lower=lower, fraction=inside - lower)


def decision_dtype(n_values: int) -> type[np.unsignedinteger]:
    """Return the smallest unsigned dtype for the values 0..n_values - 1 that leaves its largest number free."""
    if n_values <= 255:
        return np.uint8
    if n_values <= 65535:
        return np.uint16
    raise ValueError(f"{n_values} label values are more than 65535")


def decide_by_cells(decision: np.ndarray, samplings: Sequence[AxisSampling], resolve: Resolve) -> np.ndarray:
    """Take a decision per output voxel without interpolating where it cannot change.

    Linear interpolation is a convex combination of a cell's corners: where all corners agree on the winner (or on
    being above a threshold), so does every point of the cell. Only cells whose corners differ are evaluated,
    slab by slab.

    Args:
        decision: (*spatial) from `decision_dtype`, whose largest number does not occur.
        samplings: one per axis.
        resolve: gets the flat input indices of the 2**k corners of each mixed voxel (k axes with a fraction, the
            last axis fastest) and the k fractions, and returns the decisions.

    Returns:
        decision at the outputs, of the same dtype.
    """
    fractions_of = {axis: s.fraction for axis, s in enumerate(samplings) if s.fraction is not None}
    active = list(fractions_of)
    mixed_mark = np.iinfo(decision.dtype).max
    cells = _agreed_per_cell(decision, active, mixed_mark)
    strides = np.array([int(np.prod(decision.shape[axis + 1 :])) for axis in range(decision.ndim)])
    offsets = [int(np.dot(corner, strides[active])) for corner in product((0, 1), repeat=len(active))]
    out_shape = tuple(len(sampling.lower) for sampling in samplings)
    out = np.empty(out_shape, decision.dtype)
    rows_per_slab = max(1, _SLAB_VOXELS // max(1, int(np.prod(out_shape[1:]))))
    for start in range(0, out_shape[0], rows_per_slab):
        slab: np.ndarray = cells.take(samplings[0].lower[start : start + rows_per_slab], axis=0)
        for axis in range(1, decision.ndim):
            slab = slab.take(samplings[axis].lower, axis=axis)
        all_mixed = np.flatnonzero(slab == mixed_mark) if active else np.empty(0, np.int64)
        for first in range(0, len(all_mixed), _MIXED_VOXELS):
            mixed = all_mixed[first : first + _MIXED_VOXELS]
            place = list(np.unravel_index(mixed, slab.shape))
            place[0] = place[0] + start
            base = sum(samplings[axis].lower[at] * strides[axis] for axis, at in enumerate(place))
            fractions = [values[place[axis]] for axis, values in fractions_of.items()]
            slab.reshape(-1)[mixed] = resolve([base + offset for offset in offsets], fractions)
        out[start : start + rows_per_slab] = slab
    return out


def interpolate_corners(values: list[np.ndarray], fractions: list[np.ndarray]) -> np.ndarray:
    """Interpolate linearly between the 2**k corner values of each point, the last axis first."""
    for fraction in reversed(fractions):
        values = [low + (high - low) * fraction for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def sample_axis(array: np.ndarray, sampling: AxisSampling, axis: int) -> np.ndarray:
    """Apply one axis' sampling to an array; floats keep their dtype."""
    low: np.ndarray = array.take(sampling.lower, axis=axis)
    if sampling.fraction is None:
        return low
    high: np.ndarray = array.take(sampling.lower + 1, axis=axis)
    fraction = sampling.fraction.astype(array.dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    high -= low
    high *= fraction
    high += low
    return high


def _agreed_per_cell(decision: np.ndarray, active: Sequence[int], mixed_mark: int) -> np.ndarray:
    """Return the decision all corners of a cell share, or `mixed_mark`; active axes have one cell fewer."""
    low = high = decision
    for axis in active:
        front = tuple(slice(None, -1) if a == axis else slice(None) for a in range(decision.ndim))
        back = tuple(slice(1, None) if a == axis else slice(None) for a in range(decision.ndim))
        low, high = np.minimum(low[front], low[back]), np.maximum(high[front], high[back])
    return np.where(low == high, low, np.asarray(mixed_mark, decision.dtype))
