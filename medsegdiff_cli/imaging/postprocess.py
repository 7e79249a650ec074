"""Cleaning a predicted label map: holes, morphology, connected components; one class at a time.

Every function on masks takes and returns a bool array (*spatial), 2-D or 3-D, and gives the empty mask for the empty
mask. Radii and volumes are in the unit of `spacing`: its millimetres, or voxels where it is 1 along every axis.

A structure that leaves the image goes on there as it comes: erosion and opening take nothing away along the image's
border (OpenCV's and MATLAB's rule).

`change_class` takes the change of one class's mask back into a label map. It never takes a voxel from a class that the
change is not about: a voxel that is added must be background, or for regions a voxel of classes that also hold the
region's own value (a hole of the core that is filled stays inside the whole tumour).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

# A distance of 3 x 0.7 mm is within 2.1 mm, whatever the last binary digit says.
_ROUNDING = 1e-9
_BACKGROUND = 0
# Fu et al. 2023, section 4.1.1: radii of erosion, dilation and opening, and the share of the largest structure.
_MUSCLE_RADII = (3, 5, 10)
_SECOND_SHARE = 0.75
# MATLAB's strel('disk', R): half the edge, and the largest sum of both offsets, of an octagon.
_MATLAB_OCTAGONS = {3: (2, 4), 5: (4, 6), 10: (9, 14)}

Box = tuple[slice, ...]
MaskChange = Callable[[np.ndarray], np.ndarray]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return the mask with what it encloses: background that cannot reach the border over voxel faces."""
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=bool)


def eroded(mask: np.ndarray, radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Return the voxels further than `radius` from every voxel outside of the mask (a ball as structuring element)."""
    if mask.all():  # nothing is outside
        return mask.copy()
    return ndimage.distance_transform_edt(mask, sampling=spacing) > radius * (1 + _ROUNDING)


def dilated(mask: np.ndarray, radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Return the voxels within `radius` of the mask (a ball as structuring element)."""
    if not mask.any():
        return mask.copy()
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius * (1 + _ROUNDING)


def opened(mask: np.ndarray, radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Return what balls of `radius` that fit into the mask cover."""
    return dilated(eroded(mask, radius, spacing), radius, spacing)


def largest_components(mask: np.ndarray, n: int = 1, *, full: bool = True) -> np.ndarray:
    """Return the n largest connected components; of equal ones those that come first in array order.

    Args:
        full: voxels belong together over faces, edges and corners; else over faces alone.
    """
    numbered, sizes = _components(mask, full=full)
    return _chosen(numbered, np.argsort(-sizes, kind="stable")[:n])


def without_small_components(mask: np.ndarray, smallest: float, voxel: float, *, full: bool = True) -> np.ndarray:
    """Return the connected components of at least `smallest`.

    Args:
        smallest: in the unit of `voxel`.
        voxel: volume of one voxel.
    """
    numbered, sizes = _components(mask, full=full)
    return _chosen(numbered, np.flatnonzero(sizes * voxel * (1 + _ROUNDING) >= smallest))


def muscle_ultrasound(
    mask: np.ndarray, *, superficial: Literal["top", "left"] = "top", disks: Literal["round", "matlab"] = "round"
) -> np.ndarray:
    """Clean the cross-section of a muscle: Fu et al. 2023, section 4.1.1, after Marzola et al. 2021.

    Holes are filled; erosion with a disk of radius 3, dilation with 5, opening with 10; the largest structure is kept
    when the second is below 75 % of it, else the more superficial one of the two; holes are filled.

    Args:
        mask: (y, x), the first row being the top of the image.
        superficial: nearer to the top (the paper), or to the left (the published code, which compares columns).
        disks: round (the paper), or MATLAB's octagons, which are smaller (the published code).
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask of {mask.ndim} axes is no slice")
    three, five, ten = _MUSCLE_RADII
    mask = _dilated_by_disk(_eroded_by_disk(fill_holes(mask), three, disks), five, disks)
    mask = _dilated_by_disk(_eroded_by_disk(mask, ten, disks), ten, disks)
    return fill_holes(_most_superficial(mask, axis=0 if superficial == "top" else 1))


def _most_superficial(mask: np.ndarray, axis: int) -> np.ndarray:
    numbered, sizes = _components(mask, full=True)
    order = np.argsort(-sizes, kind="stable")[:2]
    if len(order) < 2 or sizes[order[1]] < _SECOND_SHARE * sizes[order[0]]:
        return _chosen(numbered, order[:1])
    boxes = ndimage.find_objects(numbered)
    return _chosen(numbered, np.array([min(order, key=lambda index: boxes[index][axis].start)]))


def _eroded_by_disk(mask: np.ndarray, radius: int, disks: str) -> np.ndarray:
    if disks == "round":
        return eroded(mask, radius, (1.0, 1.0))
    return ndimage.binary_erosion(mask, _octagon(radius), border_value=1)


def _dilated_by_disk(mask: np.ndarray, radius: int, disks: str) -> np.ndarray:
    if disks == "round":
        return dilated(mask, radius, (1.0, 1.0))
    return ndimage.binary_dilation(mask, _octagon(radius))


def _octagon(radius: int) -> np.ndarray:
    half, diagonal = _MATLAB_OCTAGONS[radius]
    offsets = np.abs(np.arange(-half, half + 1))
    return offsets[:, None] + offsets[None, :] <= diagonal


def _components(mask: np.ndarray, *, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbered components (1, 2, ...; 0 outside) and the size of each."""
    structure = ndimage.generate_binary_structure(mask.ndim, mask.ndim if full else 1)
    numbered, count = ndimage.label(mask, structure)
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)[1:]


def _chosen(numbered: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the mask of components, given by index from 0."""
    is_chosen: np.ndarray = np.zeros(int(numbered.max(initial=0)) + 1, dtype=bool)
    is_chosen[indices + 1] = True
    return is_chosen[numbered]


@dataclass(frozen=True, kw_only=True)
class PaintedClass:
    """A class in a label map.

    Attributes:
        values: the label values that it consists of; regions may share some.
        paint: the value that its own voxels get.
    """

    values: tuple[int, ...]
    paint: int


def change_class(
    label: np.ndarray,
    classes: Mapping[str, PaintedClass],
    name: str,
    change: MaskChange,
    *,
    margin: Sequence[int] | None = None,
) -> np.ndarray:
    """Change the mask of one class, and leave the voxels of all others alone.

    Args:
        label: (*spatial) integers from 0 (background) on.
        classes: all of them, in the order in which they are painted over each other.
        name: the class to change.
        change: from the mask, cut to a box around the class, to the changed one; a class that is not there stays so.
        margin: voxels per axis by which the mask may grow; None where it cannot.

    Returns:
        a new label map. What is taken away becomes what the voxel is without the class: the last painted of the other
        regions that it belongs to, else background.
    """
    own, out = classes[name], label.copy()
    table: np.ndarray = np.isin(np.arange(int(label.max(initial=0)) + 1), own.values)
    mask = table[label]
    box = _box_around(mask, margin or (0,) * label.ndim)
    if box is None:
        return out
    before, part = mask[box], label[box]
    after = change(before)
    painted = out[box]
    for value in np.unique(part[before & ~after]).tolist():
        painted[before & ~after & (part == value)] = _without(value, own, classes)
    for value in np.unique(part[after & ~before]).tolist():
        if _classes_of(value, classes) <= _classes_of(own.paint, classes):
            painted[after & ~before & (part == value)] = own.paint
    return out


def _classes_of(value: int, classes: Mapping[str, PaintedClass]) -> set[str]:
    return {name for name, painted in classes.items() if value in painted.values}


def _without(value: int, own: PaintedClass, classes: Mapping[str, PaintedClass]) -> int:
    """Return the value of a voxel that leaves the class `own`."""
    left = _classes_of(value, classes)
    others = [classes[name].paint for name in classes if name in left and classes[name].paint not in own.values]
    return next((paint for paint in reversed(others) if _classes_of(paint, classes) <= left), _BACKGROUND)


def _box_around(mask: np.ndarray, margin: Sequence[int]) -> Box | None:
    """Return the box of the mask's voxels, wider by the margin and one voxel where the image goes on."""
    box = []
    for axis, (size, wider) in enumerate(zip(mask.shape, margin, strict=True)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        box.append(slice(max(0, int(found[0]) - wider - 1), min(size, int(found[-1]) + wider + 2)))
    return tuple(box)


def margin_of(radius: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """Return how many voxels per axis a ball of `radius` reaches."""
    return tuple(math.floor(radius * (1 + _ROUNDING) / edge) for edge in spacing)
