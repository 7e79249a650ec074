"""Boxes of voxels: what to cut out of an image, and how to put it back.

A box is a slice with start and stop per spatial axis. A window from `centre_crop_box` may reach beyond the image
(start < 0 or stop > shape), which is why boxes go through `crop` and `paste`, never through plain indexing.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


def nonzero_mask(array: np.ndarray) -> np.ndarray:
    """Return (*spatial) bool: any channel differs from 0, and holes that touch no border are filled (nnU-Net)."""
    mask = (array != 0).any(axis=0)
    if mask.all():
        return mask
    # Background components that do not reach the border: equal to scipy's binary_fill_holes, in one pass.
    components, count = ndimage.label(~mask)
    is_hole = np.ones(count + 1, dtype=bool)
    is_hole[0] = False
    for axis in range(mask.ndim):
        for end in (0, -1):
            is_hole[np.unique(components.take(end, axis=axis))] = False
    return mask | is_hole[components] if is_hole.any() else mask


def nonzero_bounding_box(array: np.ndarray) -> Box:
    """Return the smallest box around all voxels of (channel, *spatial) that differ from 0 in any channel.

    The whole image when it is zero everywhere. Filling holes would not change the box, so it is not done.
    """
    return mask_bounding_box((array != 0).any(axis=0))


def mask_bounding_box(mask: np.ndarray) -> Box:
    """Return the smallest box around the true voxels of (*spatial); the whole image when there are none."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        used = np.flatnonzero(mask.any(axis=others))
        if not len(used):
            return whole_box(mask.shape)
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box that covers a grid."""
    return tuple(slice(0, int(n)) for n in shape)


def centre_crop_box(shape: Sequence[int], size: Sequence[int]) -> Box:
    """Return the box of `size` voxels around the centre of a grid; it reaches beyond the grid where that is smaller."""
    starts = [(n - m) // 2 if n >= m else -((m - n) // 2) for n, m in zip(shape, size, strict=True)]
    return tuple(slice(start, start + m) for start, m in zip(starts, size, strict=True))


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the voxels per axis of a box."""
    return tuple(edge.stop - edge.start for edge in box)


def crop(array: np.ndarray, box: Box, fill: float = 0) -> np.ndarray:
    """Cut a box out of (..., *spatial); parts of the box beyond the array hold `fill`.

    Returns:
        (..., *box_shape(box)) of the same dtype: a view when the box lies within the array, else a new array.
    """
    full_shape = array.shape[array.ndim - len(box) :]
    inner, place = _overlap(box, full_shape)
    part = array[(..., *inner)]
    if part.shape[array.ndim - len(box) :] == box_shape(box):
        return part
    out = np.full((*array.shape[: array.ndim - len(box)], *box_shape(box)), fill, dtype=array.dtype)
    out[(..., *place)] = part
    return out


def paste(array: np.ndarray, box: Box, full_shape: Sequence[int], fill: float = 0) -> np.ndarray:
    """Put (..., *box_shape(box)) back where `crop` took it from; the rest of (..., *full_shape) holds `fill`."""
    if array.shape[array.ndim - len(box) :] != box_shape(box):
        raise ValueError(f"array {array.shape} does not fit the box {box_shape(box)}")
    inner, place = _overlap(box, full_shape)
    out = np.full((*array.shape[: array.ndim - len(box)], *full_shape), fill, dtype=array.dtype)
    out[(..., *inner)] = array[(..., *place)]
    return out


def _overlap(box: Box, shape: Sequence[int]) -> tuple[Box, Box]:
    """Return the part of a box that lies on the grid, in the grid's indices and in the box's."""
    inner, place = [], []
    for edge, n in zip(box, shape, strict=True):
        start = min(max(edge.start, 0), n)
        stop = max(min(edge.stop, n), start)
        inner.append(slice(start, stop))
        place.append(slice(start - edge.start, stop - edge.start))
    return tuple(inner), tuple(place)
