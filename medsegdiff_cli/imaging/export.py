"""From the network's grid back to the native grid: labels, and maps such as probabilities or uncertainty.

Scores are interpolated linearly, as nnU-Net does, and decided afterwards; but no array of classes times native
voxels is ever made (see `imaging.sampling.decide_by_cells`). What lies outside the crop, or beyond the grid after
a centre crop, becomes background. A native voxel belongs to the grid when its centre lies within the grid's box.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medsegdiff_cli.imaging.crop import box_shape
from medsegdiff_cli.imaging.sampling import (
    AxisSampling,
    decide_by_cells,
    decision_dtype,
    interpolate_corners,
    nearest_sampling,
    sample_axis,
    sampling_at,
    sampling_coordinates,
)
from medsegdiff_cli.imaging.transform import Placement


def export_labels(
    scores: np.ndarray,
    placement: Placement,
    *,
    exclusive: bool = True,
    threshold: float = 0.5,
    region_order: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Decide the class of every native voxel.

    Args:
        scores: (class, *grid) probabilities of real dtype (for exclusive classes logits do as well); best
            C-contiguous, else it is copied once.
        placement: of the case, from `imaging.transform.forward`.
        exclusive: the class of the largest interpolated score wins, the lowest class among equal ones. Otherwise
            classes are regions: those with an interpolated score above `threshold` are painted one over the other.
        threshold: for regions.
        region_order: order of painting, by index; as they come when None.

    Returns:
        (*native) unsigned integers: the class index, or for regions index + 1 with 0 for background.
    """
    _check_grid(scores.shape[1:], placement)
    scores = np.ascontiguousarray(scores)
    reach = _reach(placement)
    if exclusive:
        winner = _largest_class(scores)
        return _pasted(decide_by_cells(winner, reach.samplings, _LargestScore(scores)), reach, placement, 0)
    n_regions = scores.shape[0]
    painted = np.zeros(reach.shape, decision_dtype(n_regions + 1))
    for region in range(n_regions) if region_order is None else region_order:
        above = (scores[region] > threshold).astype(np.uint8)
        resolve = _AboveThreshold(scores[region], threshold)
        painted[decide_by_cells(above, reach.samplings, resolve).astype(bool)] = region + 1
    return _pasted(painted, reach, placement, 0)


def export_map(values: np.ndarray, placement: Placement, fill: float = 0.0) -> np.ndarray:
    """Resample one map linearly to the native grid.

    Args:
        values: (*grid).
        placement: of the case.
        fill: value outside the crop.

    Returns:
        (*native) float32 within the range of `values`, `fill` outside the crop.
    """
    _check_grid(values.shape, placement)
    reach = _reach(placement)
    resized = np.asarray(values, dtype=np.float32)
    low, high = resized.min(), resized.max()
    for axis in sorted(range(resized.ndim), key=lambda a: reach.shape[a] / values.shape[a]):
        resized = sample_axis(resized, reach.samplings[axis], axis)
    return _pasted(resized.clip(low, high), reach, placement, fill)


def export_maps(
    maps: Iterable[np.ndarray], placement: Placement, fill: float | Sequence[float] = 0.0
) -> Iterator[np.ndarray]:
    """Resample maps (map, *grid) to the native grid one at a time; `fill` may differ from map to map."""
    for index, values in enumerate(maps):
        yield export_map(values, placement, fill[index] if isinstance(fill, Sequence) else fill)


@dataclass(frozen=True)
class _Reach:
    """The native voxels that the grid covers (transposed order), and where each looks in the grid."""

    first: tuple[int, ...]
    samplings: tuple[AxisSampling, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(sampling.lower) for sampling in self.samplings)


def _reach(placement: Placement) -> _Reach:
    axes = [_axis_reach(placement, axis) for axis in range(len(placement.transpose))]
    first = tuple(edge.start + offset for edge, (offset, _) in zip(placement.crop_box, axes, strict=True))
    return _Reach(first=first, samplings=tuple(sampling for _, sampling in axes))


def _axis_reach(placement: Placement, axis: int) -> tuple[int, AxisSampling]:
    """Return the first voxel of the crop that lies in the grid, and the sampling of it and its successors."""
    n_native = box_shape(placement.crop_box)[axis]
    n_resampled, window = placement.resampled_shape[axis], placement.window[axis]
    # The part of the resampled image that the grid holds; beyond it the grid is padding.
    start, stop = max(window.start, 0), min(window.stop, n_resampled)
    coordinates = sampling_coordinates(n_resampled, n_native)
    inside = np.flatnonzero((coordinates >= start - 0.5) & (coordinates < stop - 0.5))
    if not len(inside):
        return 0, AxisSampling(lower=inside, fraction=None)
    if n_resampled == n_native or stop - start == 1 or axis == placement.nearest_axis:
        lower = nearest_sampling(n_resampled, n_native).lower[inside].clip(start, stop - 1)
        return int(inside[0]), AxisSampling(lower=lower - window.start, fraction=None)
    sampling = sampling_at(coordinates[inside], start, stop)
    return int(inside[0]), AxisSampling(lower=sampling.lower - window.start, fraction=sampling.fraction)


def _largest_class(scores: np.ndarray) -> np.ndarray:
    """Return the index of the largest score per voxel, the lowest among equal ones."""
    winner = np.zeros(scores.shape[1:], decision_dtype(scores.shape[0]))
    best = scores[0].copy()
    for index in range(1, scores.shape[0]):
        np.copyto(winner, winner.dtype.type(index), where=scores[index] > best)
        np.maximum(best, scores[index], out=best)
    return winner


class _LargestScore:
    """Decides mixed voxels by the largest interpolated score, class by class."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores.reshape(scores.shape[0], -1)

    def __call__(self, corners: list[np.ndarray], fractions: list[np.ndarray]) -> np.ndarray:
        best = _interpolated(self.scores[0], corners, fractions)
        winner: np.ndarray = np.zeros(best.shape, np.int64)
        for index in range(1, len(self.scores)):
            score = _interpolated(self.scores[index], corners, fractions)
            winner[score > best] = index
            np.maximum(best, score, out=best)
        return winner


class _AboveThreshold:
    """Decides mixed voxels of one region by its interpolated score."""

    def __init__(self, scores: np.ndarray, threshold: float) -> None:
        self.scores = scores.reshape(-1)
        self.threshold = threshold

    def __call__(self, corners: list[np.ndarray], fractions: list[np.ndarray]) -> np.ndarray:
        return _interpolated(self.scores, corners, fractions) > self.threshold


def _interpolated(flat_scores: np.ndarray, corners: list[np.ndarray], fractions: list[np.ndarray]) -> np.ndarray:
    return interpolate_corners([flat_scores.take(corner).astype(np.float64) for corner in corners], fractions)


def _check_grid(shape: tuple[int, ...], placement: Placement) -> None:
    if tuple(shape) != placement.grid_shape:
        raise ValueError(f"scores of shape {tuple(shape)} do not lie on the grid {placement.grid_shape}")


def _pasted(covered: np.ndarray, reach: _Reach, placement: Placement, fill: float) -> np.ndarray:
    """Put what the grid covers into the native image and undo the transposition."""
    transposed_shape = tuple(placement.geometry.shape[axis] for axis in placement.transpose)
    out = np.full(transposed_shape, fill, dtype=covered.dtype)
    out[tuple(slice(start, start + n) for start, n in zip(reach.first, covered.shape, strict=True))] = covered
    return np.ascontiguousarray(out.transpose(np.argsort(placement.transpose)))
