"""Slices to look at: 2D panels cut from a case, turned as radiologists look at them and windowed for display."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medsegdiff_cli.imaging.image import Geometry, Image

Plane = Literal["axial", "coronal", "sagittal"]
# The array axis (z, y, x) of an LPS volume that each plane is cut across.
_CUT_AXIS: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
_PLANE_OF: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
_THICK_SLICES = 1.5
_WINDOW_PERCENT = (0.5, 99.5)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One slice.

    Attributes:
        image: (y, x) or (y, x, 3), 0 to 1.
        label: (y, x) integers, None where there is none.
        spacing: pixel height and width, for the aspect.
        caption: what slice this is, "" for photographs.
    """

    image: np.ndarray
    label: np.ndarray | None
    spacing: tuple[float, float]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which slice of a volume, turned to LPS, is shown: slice `index` (from 0) across `plane`."""

    plane: Plane
    index: int


def panels_of(image: Image, label: np.ndarray | None, *, three_planes: bool = False) -> tuple[Panel, ...]:
    """Cut a case into panels: a photograph as it is; a volume where most label lies, else in the middle.

    Volumes are turned to LPS (patient's left on the right, head or front up). One panel shows the plane of
    acquisition when slices are thick, else the axial one.

    Args:
        image: one channel, or three of a colour photograph; of a volume's channels the first is shown.
        label: (*spatial) integers.
        three_planes: one panel a plane for volumes.
    """
    if image.geometry.n_dims == 2:
        return (panel_at(image, label, None),)
    planes = _PLANE_OF if three_planes else (_plane_to_show(image.geometry),)
    return tuple(panel_at(image, label, choose_cut(image.geometry, label, plane)) for plane in planes)


def choose_cut(geometry: Geometry, label: np.ndarray | None, plane: Plane | None = None) -> Cut | None:
    """Return the slice of a volume that shows most label, in the middle without any; None for a 2D image.

    Args:
        label: (*spatial) integers.
        plane: None takes the plane of acquisition when slices are thick, else the axial one.
    """
    if geometry.n_dims == 2:
        return None
    plane = plane or _plane_to_show(geometry)
    axis = _CUT_AXIS[plane]
    if label is None:
        shape = _to_lps(np.empty(geometry.shape, bool), geometry)[0].shape
        return Cut(plane=plane, index=shape[axis] // 2)
    return Cut(plane=plane, index=_slice_with_most_label(_to_lps(label, geometry)[0], axis))


def panel_at(image: Image, label: np.ndarray | None, cut: Cut | None) -> Panel:
    """Return the panel of one slice; several labels of an image are compared on the same cut."""
    if cut is None:
        spacing = (image.geometry.spacing_mm[0], image.geometry.spacing_mm[1])
        return Panel(image=_for_display(image.array), label=label, spacing=spacing)
    volume, spacing_mm = _to_lps(image.array[0], image.geometry)
    axis = _CUT_AXIS[cut.plane]
    pixel = tuple(s for a, s in enumerate(spacing_mm) if a != axis)
    return Panel(
        image=_for_display(slice_at(image.array[0], image.geometry, cut)[np.newaxis]),
        label=None if label is None else slice_at(label, image.geometry, cut),
        spacing=(pixel[0], pixel[1]),
        caption=f"{cut.plane} {cut.index + 1}/{volume.shape[axis]}",
    )


def slice_at(array: np.ndarray, geometry: Geometry, cut: Cut | None) -> np.ndarray:
    """Return the (y, x) slice of an array (*spatial) on the image's grid, turned as the panel is."""
    if cut is None:
        return array
    turned = np.take(_to_lps(array, geometry)[0], cut.index, axis=_CUT_AXIS[cut.plane])
    return turned if cut.plane == "axial" else turned[::-1]  # rows run from feet to head: turn the head up


def _plane_to_show(geometry: Geometry) -> Plane:
    spacing_mm = _to_lps(np.empty(geometry.shape, bool), geometry)[1]
    thick = int(np.argmax(spacing_mm))
    is_thick = spacing_mm[thick] > _THICK_SLICES * sorted(spacing_mm)[1]
    return _PLANE_OF[thick if is_thick else 0]


def _slice_with_most_label(label: np.ndarray, axis: int) -> int:
    """Return the slice that shows most: the square root lets a small class count beside a large one."""
    others = tuple(other for other in range(label.ndim) if other != axis)
    shown: np.ndarray = np.zeros(label.shape[axis])
    for value in np.unique(label):
        if value != 0:
            shown += np.sqrt((label == value).sum(axis=others))
    return int(np.argmax(shown)) if shown.any() else label.shape[axis] // 2


def _to_lps(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, tuple[float, ...]]:
    """Turn (z, y, x) by whole axes so that x runs to the left, y to the back, z to the head."""
    if not geometry.has_physical_spacing:
        return array, geometry.spacing_mm
    direction: np.ndarray = np.reshape(geometry.direction, (3, 3))
    axis_of_world = np.abs(direction).argmax(axis=1)
    if sorted(axis_of_world.tolist()) != [0, 1, 2]:  # oblique by 45 degrees: no nearest axis
        return array, geometry.spacing_mm
    # World (x, y, z) and array (z, y, x) run in opposite order.
    order = [2 - int(axis_of_world[world]) for world in (2, 1, 0)]
    backwards = [2 - world for world in range(3) if direction[world, axis_of_world[world]] < 0]
    turned = np.flip(array.transpose(order), axis=tuple(backwards))
    return turned, tuple(geometry.spacing_mm[axis] for axis in order)


def _for_display(channels: np.ndarray) -> np.ndarray:
    """Scale (1 or 3, y, x) to 0..1: photographs by their range of values, greys by percentiles."""
    if channels.shape[0] == 3:
        top = np.iinfo(channels.dtype).max if channels.dtype.kind == "u" else max(float(channels.max()), 1e-9)
        return np.clip(np.moveaxis(channels, 0, -1) / top, 0, 1)
    grey: np.ndarray = channels[0].astype(np.float32)
    low, high = np.percentile(grey, _WINDOW_PERCENT)
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    return np.clip((grey - low) / max(float(high - low), 1e-9), 0, 1)
