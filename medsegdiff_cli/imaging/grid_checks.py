"""Whether a voxel grid is one that a body can be scanned on, and what a reader should know of where it came from."""

import logging
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.inflating import damaged

log = logging.getLogger(__name__)

# ITK takes 0.006 degrees and refuses 0.03 degrees.
LARGEST_SHEAR_DEGREES = 0.01
# Up to here --fix-affine needs no further word: the nearest rigid grid is closer than scanners are aligned.
SMALL_SHEAR_DEGREES = 1.0
# A nanometre and a hundred metres.
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 1e-6, 1e5
_LEAST_DETERMINANT = 1e-3
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_LARGEST_SPACING_DIFFERENCE = 1e-2


def split_axes(axes: np.ndarray, path: Path, fix_affine: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """Split the columns of an affine into voxel edges and direction cosines.

    Args:
        axes: (n, n), one column a voxel axis, in mm.
        fix_affine: largest shear in degrees that is taken away; 0 takes none away.

    Returns:
        edges (n,), cosines (n, n) and False when a shear was taken away.

    Raises:
        InputDataError: the axes are not finite, not independent, of absurd length, or sheared.
    """
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or (spacing == 0).any() or abs(np.linalg.det(axes / spacing)) < _LEAST_DETERMINANT:
        raise damaged(f"the affine cannot be inverted: {axes.tolist()}", path)
    if spacing.min() < _SMALLEST_SPACING_MM or spacing.max() > _LARGEST_SPACING_MM:
        raise damaged(f"absurd spacing of {' x '.join(f'{edge:.4g}' for edge in spacing)} mm (x, y[, z])", path)
    direction = axes / spacing
    cosines = np.abs(direction.T @ direction - np.eye(len(axes)))
    angle = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
    if angle <= LARGEST_SHEAR_DEGREES:
        return spacing, direction, True
    if angle > fix_affine:
        raise _sheared(angle, path, fix_affine)
    log.warning("%s: a shear of %.3g degrees was taken away (nearest rigid grid)", path, angle)
    left, _, right = np.linalg.svd(direction)
    return spacing, left @ right, False


def sound_grid(geometry: Geometry, path: Path, fix_affine: float) -> Geometry:
    """Return the grid of a file that SimpleITK read, once it is proved to be one.

    Raises:
        InputDataError: as `split_axes`, or an origin that is not finite.
    """
    if not np.isfinite(geometry.origin_mm).all():
        raise damaged(f"the origin is not finite: {geometry.origin_mm}", path)
    n = geometry.n_dims
    _, direction, is_rigid = split_axes(geometry.affine_itk()[:n, :n], path, fix_affine)
    if is_rigid:
        return geometry
    return Geometry(
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        origin_mm=geometry.origin_mm,
        direction=tuple(float(cosine) + 0.0 for cosine in direction.ravel()),
    )


def notes_on(geometry: Geometry) -> tuple[str, ...]:
    """Return what was guessed, converted or overruled when the grid was read, one sentence each."""
    header = geometry.file_header
    if header.get("format") != "nifti":
        return ()
    notes = []
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        notes.append("the file has no affine: its spacing is pixdim's, its orientation a guess")
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNIT_NAMES:
        notes.append(f"lengths are stored in {_UNIT_NAMES[unit]} and were converted to mm")
    unit_mm = {1: 1000.0, 3: 0.001}.get(unit, 1.0)
    stored = np.abs(header["pixdim"][1 : geometry.n_dims + 1]) * unit_mm
    used: np.ndarray = np.array(geometry.spacing_mm[::-1])
    if (np.abs(stored - used) > _LARGEST_SPACING_DIFFERENCE * used).any():
        sizes = " x ".join(f"{edge:.4g}" for edge in stored), " x ".join(f"{edge:.4g}" for edge in used)
        notes.append(f"pixdim gives voxels of {sizes[0]} mm, the affine {sizes[1]} mm; the affine was followed")
    return tuple(notes)


def _sheared(angle: float, path: Path, fix_affine: float) -> InputDataError:
    if angle <= SMALL_SHEAR_DEGREES:
        fix = "convert with --fix-affine to take the nearest rigid grid, or resample the image"
    else:
        flags = f"--fix-affine --max-shear {np.ceil(10 * angle) / 10:g}"
        fix = f"resample the image; or convert with {flags} if places may move"
    limit = f" (at most {fix_affine:g} may be taken away)" if fix_affine else ""
    return InputDataError(
        f"the affine is sheared: its axes are {angle:.3g} degrees off a right angle{limit}", where=str(path), fix=fix
    )
