"""Resampling: from one voxel grid to another that covers the same box.

The grids share their outer voxel edges, as in `skimage.transform.resize` and nnU-Net; there is no anti-aliasing.
Output voxel i of m looks at input coordinate (i + 0.5) * n / m - 0.5, clamped to the outermost voxel centres.
Every operator works axis by axis. Cubic operators are obtained by resizing unit impulses in one dimension
(scipy's spline with its boundary handling and prefilter inside) and are applied as banded matrix products.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from scipy import ndimage

from medsegdiff_cli.imaging.sampling import (
    decide_by_cells,
    decision_dtype,
    linear_sampling,
    nearest_sampling,
    sample_axis,
    sampling_coordinates,
)

Interpolation = Literal["cubic", "linear", "nearest"]

ANISOTROPY_LIMIT = 3.0  # nnU-Net: beyond this ratio the coarsest axis is resampled apart
TIE_TOLERANCE = 1e-9  # supports of two labels closer than this count as equal

_BAND_VOXELS = 64  # the impulse response of the cubic spline falls below 1e-16 within half of it
_BLOCK_ROWS = 32

# (first output row, one past the last, first input column, one past the last, dense block)
_Block = tuple[int, int, int, int, np.ndarray]


def resize_cubic(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize (channel, *spatial) with cubic splines, each channel clipped to its input range.

    Equals `skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)` of each channel within 1e-5 of
    the channel's range.

    Args:
        array: (channel, *spatial) of any real dtype.
        shape: wanted voxels per spatial axis.

    Returns:
        (channel, *shape) float32.
    """
    resized = _resize_axes(_as_float32(array), shape, _cubic_axis)
    spatial = tuple(range(1, array.ndim))
    return _clipped(resized, array.min(axis=spatial, keepdims=True), array.max(axis=spatial, keepdims=True))


def resize_linear(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize (channel, *spatial) linearly to (channel, *shape) float32; skimage's order 1."""
    return _resize_axes(_as_float32(array), shape, _linear_axis)


def resize_nearest(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize (channel, *spatial) to (channel, *shape) by picking the nearest voxel; the dtype is kept."""
    return _resize_axes(array, shape, _nearest_axis)


def should_separate_z(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """Return the spatial axis that is resampled apart from the two others, or None.

    nnU-Net's rule: the current spacing decides when its largest entry is more than 3 times its smallest, else the
    new spacing does; the axis is the one of largest spacing, and there is none when two axes share the maximum.
    Images with two axes have none.
    """
    if len(spacing_mm) != 3:
        return None
    for spacing in (spacing_mm, new_spacing_mm):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY_LIMIT:
            axes = [axis for axis, s in enumerate(spacing) if s == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def resize_image(
    array: np.ndarray,
    shape: Sequence[int],
    *,
    nearest_axis: int | None = None,
    interpolation: Interpolation = "cubic",
) -> np.ndarray:
    """Resample an image; the same shape gives the same values, bit for bit.

    Args:
        array: (channel, *spatial).
        shape: wanted voxels per spatial axis.
        nearest_axis: spatial axis from `should_separate_z`: the other two are resampled slice by slice (a slice
            is clipped to its own range), this one takes the nearest slice.
        interpolation: rule for all axes but `nearest_axis`.

    Returns:
        (channel, *shape) float32.
    """
    array = _as_float32(array)
    if array.shape[1:] == tuple(shape):
        return array
    if interpolation == "nearest":
        return resize_nearest(array, shape)
    if interpolation == "linear":
        return _with_nearest_axis(array, shape, nearest_axis, resize_linear)
    return _with_nearest_axis(
        array, shape, nearest_axis, resize_cubic if nearest_axis is None else _slicewise_cubic(nearest_axis)
    )


def resize_labels(labels: np.ndarray, shape: Sequence[int], *, nearest_axis: int | None = None) -> np.ndarray:
    """Resample an integer label map; no value appears that was not there.

    As nnU-Net (batchgenerators' `resize_segmentation`, order 1): the mask of each label is resized linearly and
    the label with the largest value wins. Exact ties go to the nearest voxel's label when it is among the tied,
    else to the smallest label.

    Args:
        labels: (*spatial) integers spanning fewer than 65535 values.
        shape: wanted voxels per axis.
        nearest_axis: axis that takes the nearest slice instead (`should_separate_z`).

    Returns:
        (*shape) of the input's dtype.
    """
    if labels.shape == tuple(shape) or labels.size == 0:
        return labels
    lowest = int(labels.min())
    decision = (labels - lowest).astype(decision_dtype(int(labels.max()) - lowest + 1))

    def in_plane(block: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
        samplings = [linear_sampling(n, m) for n, m in zip(block.shape[1:], new_shape, strict=True)]
        flat = block.reshape(-1)
        return decide_by_cells(block[0], samplings, lambda corners, f: _most_supported_label(flat, corners, f))[None]

    resized = _with_nearest_axis(decision[None], shape, nearest_axis, in_plane)[0]
    return (resized.astype(np.int64) + lowest).astype(labels.dtype)


def _as_float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float32)


def _clipped(resized: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.clip(resized, low.astype(np.float32), high.astype(np.float32), out=resized)


def _resize_axes(
    array: np.ndarray, shape: Sequence[int], resize_axis: Callable[[np.ndarray, int, int], np.ndarray]
) -> np.ndarray:
    """Resize axis by axis; axes that shrink come first, so that the others have less to do."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis] / array.shape[axis + 1])
    resized = array
    for axis in order:
        if shape[axis] != resized.shape[axis + 1]:
            resized = resize_axis(resized, shape[axis], axis + 1)
    return resized.copy() if resized is array else resized


def _linear_axis(array: np.ndarray, m: int, axis: int) -> np.ndarray:
    return sample_axis(array, linear_sampling(array.shape[axis], m), axis)


def _nearest_axis(array: np.ndarray, m: int, axis: int) -> np.ndarray:
    return sample_axis(array, nearest_sampling(array.shape[axis], m), axis)


def _cubic_axis(array: np.ndarray, m: int, axis: int) -> np.ndarray:
    n = array.shape[axis]
    before, after = int(np.prod(array.shape[:axis])), int(np.prod(array.shape[axis + 1 :]))
    source = np.ascontiguousarray(array).reshape(before, n, after)
    out: np.ndarray = np.empty((before, m, after), np.float32)
    for row, row_end, column, column_end, weights in _cubic_blocks(n, m):
        if after == 1:
            out[:, row:row_end, 0] = source[:, column:column_end, 0] @ weights.T
        else:
            np.matmul(weights, source[:, column:column_end], out=out[:, row:row_end])
    return out.reshape(*array.shape[:axis], m, *array.shape[axis + 1 :])


@lru_cache(maxsize=64)
def _cubic_blocks(n: int, m: int) -> tuple[_Block, ...]:
    """Return the banded operator that resizes n voxels to m with cubic splines, in blocks of rows.

    Impulses that stand a band apart do not touch each other, so combs of them give all columns at once.
    """
    period = min(n, _BAND_VOXELS)
    combs = np.zeros((period, n))
    combs[np.arange(n) % period, np.arange(n)] = 1.0
    responses = np.stack(
        [ndimage.zoom(comb, m / n, output=np.empty(m), order=3, mode="nearest", grid_mode=True) for comb in combs]
    )
    centre = np.floor(sampling_coordinates(n, m)).astype(np.int64)
    first = (centre - period // 2 + 1).clip(0, n - period)
    blocks = []
    for row in range(0, m, _BLOCK_ROWS):
        row_end = min(row + _BLOCK_ROWS, m)
        column, column_end = int(first[row]), int(first[row_end - 1]) + period
        weights = np.zeros((row_end - row, column_end - column))
        columns = first[row:row_end, None] + np.arange(period)
        rows = np.arange(row, row_end)[:, None]
        weights[rows - row, columns - column] = responses[columns % period, rows]
        used = np.flatnonzero(np.abs(weights).max(axis=0) > 1e-8)
        low, high = int(used[0]), int(used[-1]) + 1
        block = np.ascontiguousarray(weights[:, low:high], dtype=np.float32)
        blocks.append((row, row_end, column + low, column + high, block))
    return tuple(blocks)


def _with_nearest_axis(
    array: np.ndarray,
    shape: Sequence[int],
    nearest_axis: int | None,
    resize: Callable[[np.ndarray, Sequence[int]], np.ndarray],
) -> np.ndarray:
    """Resize all axes but one with `resize`; that one takes the nearest slice, at the end where it has less to do."""
    if nearest_axis is None:
        return resize(array, shape)
    m, axis = shape[nearest_axis], nearest_axis + 1
    shrinks = m < array.shape[axis]
    if shrinks:
        array = _nearest_axis(array, m, axis)
    in_plane = list(shape)
    in_plane[nearest_axis] = array.shape[axis]
    array = resize(array, in_plane)
    return array if shrinks or m == array.shape[axis] else _nearest_axis(array, m, axis)


def _slicewise_cubic(nearest_axis: int) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
    def resize(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        plane = tuple(axis for axis in range(1, array.ndim) if axis != nearest_axis + 1)
        resized = _resize_axes(array, shape, _cubic_axis)
        return _clipped(resized, array.min(axis=plane, keepdims=True), array.max(axis=plane, keepdims=True))

    return resize


def _most_supported_label(
    flat_labels: np.ndarray, corners: list[np.ndarray], fractions: list[np.ndarray]
) -> np.ndarray:
    """Return the label with the largest sum of corner weights per point."""
    labels: list[np.ndarray] = [flat_labels.take(corner) for corner in corners]
    weights = [
        np.prod([f if side else 1 - f for side, f in zip(sides, fractions, strict=True)], axis=0)
        for sides in product((0, 1), repeat=len(fractions))
    ]
    support = np.stack(
        [sum(w * (label == other) for w, other in zip(weights, labels, strict=True)) for label in labels]
    )
    tied = support >= support.max(axis=0) - TIE_TOLERANCE
    nearest = np.zeros(support.shape[1], np.int64)
    for fraction in fractions:
        nearest = 2 * nearest + (fraction >= 0.5)
    points = np.arange(len(nearest))
    stacked = np.stack(labels)
    smallest_tied = np.where(tied, stacked, np.iinfo(stacked.dtype).max).min(axis=0)
    return np.where(tied[nearest, points], stacked[nearest, points], smallest_tied)
