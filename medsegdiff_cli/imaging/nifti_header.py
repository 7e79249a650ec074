"""The NIfTI header: parsed, checked and turned into a geometry, and back.

Source: the NIfTI-1 and NIfTI-2 standards (nifti1.h, nifti2.h). Where the standard leaves a choice, the grid is the
one that ITK reads, so that an image has the same place in msd and in SimpleITK: sform before qform, metres and
micrometres scaled to millimetres, no axis flip when neither form is set.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.grid_checks import split_axes
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.inflating import damaged

log = logging.getLogger(__name__)

LONGEST_HEADER_BYTES = 544
DATA_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_UNUSABLE_TYPES = {1: "1-bit", 32: "complex", 128: "RGB", 1536: "128-bit float", 1792: "complex", 2304: "RGBA"}
_BYTE_ORDERS: tuple[tuple[str, Literal["little", "big"]], ...] = (("<", "little"), (">", "big"))
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_MAGICS = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
LARGEST_FORM_DISTANCE_VOXELS = 0.1


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A checked header.

    Attributes:
        fields: nibabel's structured record of all header fields, in the file's byte order.
        version: 1 or 2.
        shape_xyz: voxels per spatial axis (x, y[, z]).
        n_channels: product of the axes behind the spatial ones; at most one of them is longer than 1.
        dtype: of the stored voxels, with byte order.
        slope: value = stored * slope + intercept.
    """

    fields: Any
    version: int
    shape_xyz: tuple[int, ...]
    n_channels: int
    dtype: np.dtype
    offset_bytes: int
    slope: float
    intercept: float

    @property
    def n_data_bytes(self) -> int:
        """Bytes of all voxels and channels."""
        n_values = self.n_channels
        for size in self.shape_xyz:
            n_values *= size
        return n_values * self.dtype.itemsize


def parse_header(start: bytes, path: Path) -> NiftiHeader:
    """Parse and check the first `LONGEST_HEADER_BYTES` bytes of an inflated file.

    Raises:
        InputDataError: not a NIfTI file, or a header that no valid image can have.
    """
    version, fields = _recognise(start, path)
    shape_xyz, n_channels = _shape(fields, path)
    code = int(fields["datatype"])
    if code not in DATA_TYPES:
        name = _UNUSABLE_TYPES.get(code, "unknown")
        raise InputDataError(
            f"voxel type {code} ({name}) cannot be used", where=str(path), fix="store real numbers (int or float)"
        )
    dtype = np.dtype(DATA_TYPES[code]).newbyteorder(fields.dtype["datatype"].byteorder)
    if int(fields["bitpix"]) != 8 * dtype.itemsize:
        raise damaged(f"bitpix {int(fields['bitpix'])} contradicts voxel type {code}", path)
    header_bytes = fields.dtype.itemsize
    offset = float(fields["vox_offset"])
    # 0 is written by some tools and means "right behind the header and its 4 extension bytes".
    offset = header_bytes + 4 if offset == 0 else offset
    if not (header_bytes <= offset < 2**27 and offset == int(offset)):
        raise damaged(f"vox_offset {offset} is not a place in the file", path)
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise damaged(f"the value scaling is not finite (scl_slope {slope}, scl_inter {intercept})", path)
    return NiftiHeader(
        fields=fields,
        version=version,
        shape_xyz=shape_xyz,
        n_channels=n_channels,
        dtype=dtype,
        offset_bytes=int(offset),
        slope=slope or 1.0,
        intercept=intercept if slope else 0.0,
    )


def geometry_of(header: NiftiHeader, path: Path, *, fix_affine: float = 0.0) -> Geometry:
    """Return the grid of a checked header.

    Args:
        fix_affine: largest shear in degrees that gives way to the nearest rigid grid; above 0, the sform is also
            preferred where sform and qform disagree. The result then no longer carries the file's own affine.

    Raises:
        InputDataError: the affine is not finite, not invertible or sheared, or sform and qform disagree.
    """
    fields, n = header.fields, len(header.shape_xyz)
    unit_mm = _MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7)
    if unit_mm is None:
        raise damaged(f"unknown unit of length (xyzt_units {int(fields['xyzt_units'])})", path)
    sform, qform = _sform(fields, path), _qform(fields, header.shape_xyz, path)
    agree = sform is None or qform is None or _forms_agree(sform, qform, header.shape_xyz, path, fix_affine)
    affine_ras = sform if sform is not None else qform
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = flip @ affine_ras if affine_ras is not None else np.diag([*_pixdim(fields, header.shape_xyz, path), 1.0])
    scale = np.diag([unit_mm, unit_mm, unit_mm, 1.0])
    axes, origin = _spatial_part(scale @ affine, n)
    spacing, direction, rigid = split_axes(axes, path, fix_affine)
    stored = np.abs(np.asarray(fields["pixdim"][1 : n + 1], dtype=float)) * unit_mm
    # pixdim is what ITK reports; the norm of a column differs from it by rounding only.
    spacing = stored if np.allclose(spacing, stored, rtol=1e-4, atol=0) else spacing
    return Geometry(
        shape=header.shape_xyz[::-1],
        spacing_mm=tuple(float(s) for s in spacing[::-1]),
        origin_mm=tuple(float(o) + 0.0 for o in origin),
        direction=tuple(float(d) + 0.0 for d in direction.ravel()),
        file_header=_kept_fields(header) if agree and rigid else {},
    )


def _recognise(start: bytes, path: Path) -> tuple[int, Any]:
    """Return the version and the header record in the file's byte order."""
    for version, module, size in ((1, nib.nifti1, 348), (2, nib.nifti2, 540)):
        for order, name in _BYTE_ORDERS:
            if int.from_bytes(start[:4], name) != size:
                continue
            if len(start) < size:
                raise damaged(f"the file holds {len(start)} bytes, less than its header of {size}", path)
            fields = np.frombuffer(start[:size], dtype=module.header_dtype.newbyteorder(order))[0]
            place = slice(344, 348) if version == 1 else slice(4, 12)
            magic = bytes(start[place])
            if magic == b"ni1\0":
                fix = "convert the .hdr/.img pair to one .nii.gz file"
                raise InputDataError("header of a two-file NIfTI without its voxels", where=str(path), fix=fix)
            if magic != _MAGICS[version]:
                raise damaged(f"not a NIfTI file (magic {magic!r})", path)
            return version, fields
    raise damaged(f"not a NIfTI file (it begins with {start[:4]!r})", path)


def _shape(fields: Any, path: Path) -> tuple[tuple[int, ...], int]:
    dims = [int(d) for d in fields["dim"]]
    n_axes, sizes = dims[0], dims[1:]
    if not 1 <= n_axes <= 7 or any(size < 1 for size in sizes[:n_axes]):
        raise damaged(f"the image has no valid size (dim {dims})", path)
    if n_axes == 1:
        raise damaged(f"the image has a single axis (dim {dims})", path)
    further = [size for size in sizes[3:n_axes] if size > 1]
    if len(further) > 1:
        raise damaged(f"the image has more than one axis beside space (dim {dims})", path)
    return tuple(sizes[: min(n_axes, 3)]), further[0] if further else 1


def _sform(fields: Any, path: Path) -> np.ndarray | None:
    if int(fields["sform_code"]) <= 0:
        return None
    rows = [np.asarray(fields[name], dtype=float) for name in ("srow_x", "srow_y", "srow_z")]
    return _finite(np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]]), path)


def _finite(affine: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(affine).all():
        raise damaged(f"the affine is not finite: {affine[:3].tolist()}", path)
    return affine


def _pixdim(fields: Any, shape_xyz: tuple[int, ...], path: Path) -> np.ndarray:
    """Return the voxel edges of three axes; an axis of one voxel may have none and counts 1."""
    edges = np.ones(3)
    for axis, size in enumerate(shape_xyz):
        edge = float(fields["pixdim"][axis + 1])
        if size == 1 and edge == 0:
            continue
        if not (np.isfinite(edge) and edge > 0):
            raise damaged(f"voxel edge {edge} along axis {'xyz'[axis]} (pixdim)", path)
        edges[axis] = edge
    return edges


def _qform(fields: Any, shape_xyz: tuple[int, ...], path: Path) -> np.ndarray | None:
    """Return the affine of the quaternion (nifti1.h, method 2), or None when its code is 0."""
    if int(fields["qform_code"]) <= 0:
        return None
    b, c, d = (float(fields[f"quatern_{name}"]) for name in "bcd")
    squared = b * b + c * c + d * d
    if not np.isfinite(squared) or squared > 1.01:
        raise damaged(f"the qform's quaternion ({b}, {c}, {d}) is no rotation", path)
    if 1.0 - squared < 1e-7:
        a, length = 0.0, float(np.sqrt(squared))
        b, c, d = b / length, c / length, d / length
    else:
        a = float(np.sqrt(1.0 - squared))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    edges = _pixdim(fields, shape_xyz, path)
    edges[2] *= -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * edges
    affine[:3, 3] = [float(fields[f"qoffset_{name}"]) for name in "xyz"]
    return _finite(affine, path)


def _forms_agree(
    sform: np.ndarray, qform: np.ndarray, shape_xyz: tuple[int, ...], path: Path, fix_affine: float
) -> bool:
    """Compare where both forms put the corners, in the shortest voxel edge of the qform."""
    n = len(shape_xyz)
    corners = np.array(np.meshgrid(*([0.0, size - 1.0] for size in shape_xyz), indexing="ij")).reshape(n, -1)
    difference = (sform - qform)[:n, :n] @ corners + (sform - qform)[:n, 3:]
    edge = np.linalg.norm(qform[:3, :n], axis=0).min()
    distance = float(np.linalg.norm(difference, axis=0).max() / edge)
    if distance > LARGEST_FORM_DISTANCE_VOXELS and fix_affine:
        log.warning("%s: sform and qform place the image %.3g voxels apart; the sform is kept", path, distance)
    elif distance > LARGEST_FORM_DISTANCE_VOXELS:
        raise InputDataError(
            f"sform and qform place the image {distance:.3g} voxels apart",
            where=str(path),
            fix="set the code of the wrong one to 0, or convert with --fix-affine to keep the sform",
        )
    return distance <= LARGEST_FORM_DISTANCE_VOXELS


def _spatial_part(affine: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n, n) axes and the origin; a plane that is tilted out of 2D keeps its voxel edges, as in ITK."""
    axes = affine[:n, :n]
    if n == 2 and np.isfinite(affine).all() and np.abs(affine[2, :2]).max() > 0:
        lengths = np.linalg.norm(affine[:3, :2], axis=0)
        left, _, right = np.linalg.svd(axes / np.where(lengths > 0, lengths, 1.0))
        axes = (left @ right) * lengths
    return axes, affine[:n, 3]


def _kept_fields(header: NiftiHeader) -> dict[str, Any]:
    """Return what is needed to write the same grid, as plain finite numbers; texts are left out on purpose."""
    fields = header.fields
    numbers = {
        "quaternion": [fields[f"quatern_{name}"] for name in "bcd"],
        "qoffset": [fields[f"qoffset_{name}"] for name in "xyz"],
        "srow": [*fields["srow_x"], *fields["srow_y"], *fields["srow_z"]],
        "pixdim": list(fields["pixdim"][:4]),
    }
    return {
        "format": "nifti",
        "version": header.version,
        "qform_code": int(fields["qform_code"]),
        "sform_code": int(fields["sform_code"]),
        "xyzt_units": int(fields["xyzt_units"]),
        **{name: [float(v) if np.isfinite(v) else 0.0 for v in values] for name, values in numbers.items()},
    }
