"""An image: an array and the geometry that places it in the patient.

Arrays are (channel, *spatial) with spatial = (z, y, x) or (y, x), the order in which SimpleITK hands them out.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Rounding in headers stays below; a label of another image does not.
_LARGEST_SHIFT_VOXELS = 0.1


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The voxel grid of an image; it travels with the case and is written back unchanged.

    Attributes:
        shape: voxels per spatial axis, in array order.
        spacing_mm: voxel edge per spatial axis, in array order; 1.0 where the format stores none.
        origin_mm: centre of the first voxel, ITK's order (x, y[, z]) and sign (LPS).
        direction: ITK's direction cosines, row-major, n_dims * n_dims numbers.
        has_physical_spacing: False for photographs and the like, whose distances are in px.
        file_header: what the file format needs to write the very same grid again (for NIfTI: sform, qform,
            their codes and units); JSON-serialisable, free of patient data.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]
    has_physical_spacing: bool = True
    file_header: dict[str, Any] = field(default_factory=dict)

    @property
    def n_dims(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return len(self.shape)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm^3 (area in mm^2 in 2D; px where there is no physical spacing)."""
        return float(np.prod(self.spacing_mm))

    def affine_itk(self) -> np.ndarray:
        """Return the (n_dims + 1, n_dims + 1) matrix from voxel index (x, y[, z]) to LPS millimetres."""
        n = self.n_dims
        matrix = np.eye(n + 1)
        matrix[:n, :n] = np.reshape(self.direction, (n, n)) * np.asarray(self.spacing_mm[::-1])
        matrix[:n, n] = self.origin_mm
        return matrix

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which `from_json` restores an equal geometry."""
        return {
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": list(self.direction),
            "has_physical_spacing": self.has_physical_spacing,
            "file_header": self.file_header,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Geometry":
        """Restore a geometry from `to_json`."""
        return cls(
            shape=tuple(content["shape"]),
            spacing_mm=tuple(content["spacing_mm"]),
            origin_mm=tuple(content["origin_mm"]),
            direction=tuple(content["direction"]),
            has_physical_spacing=content["has_physical_spacing"],
            file_header=content["file_header"],
        )

    @classmethod
    def plain(
        cls, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None = None, has_physical_spacing: bool = True
    ) -> "Geometry":
        """Return an axis-aligned grid at the origin."""
        n = len(shape)
        return cls(
            shape=tuple(int(s) for s in shape),
            spacing_mm=tuple(float(s) for s in spacing_mm or (1.0,) * n),
            origin_mm=(0.0,) * n,
            direction=tuple(np.eye(n).ravel().tolist()),
            has_physical_spacing=has_physical_spacing,
        )


def largest_corner_distance_mm(first: Geometry, second: Geometry) -> float:
    """Return the largest distance between matching corner voxels of two grids of equal shape, in mm.

    This is the one rule by which two grids are called equal; infinite when the shapes differ.
    """
    if first.shape != second.shape:
        return float("inf")
    n = first.n_dims
    ends = np.asarray(first.shape[::-1], dtype=float) - 1
    corners = np.array(np.meshgrid(*([0.0, end] for end in ends), indexing="ij")).reshape(n, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    difference = (first.affine_itk() - second.affine_itk()) @ homogeneous
    return float(np.sqrt((difference[:n] ** 2).sum(axis=0)).max())


def is_on_grid_of(image: Geometry, label: Geometry) -> bool:
    """Return whether a label's grid is its image's: the shape, and corners that are hardly a tenth of a voxel apart.

    Where one of the two has no physical spacing, only shapes can be compared.
    """
    if image.shape != label.shape:
        return False
    is_placed = image.has_physical_spacing and label.has_physical_spacing
    distance_mm = largest_corner_distance_mm(image, label)
    return not is_placed or distance_mm <= _LARGEST_SHIFT_VOXELS * min(image.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class Image:
    """Voxels (channel, *spatial) with their grid; labels have one channel and an integer dtype."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.shape[1:] != self.geometry.shape:
            raise ValueError(f"array {self.array.shape} does not fit the grid {self.geometry.shape}")
