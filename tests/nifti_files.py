"""NIfTI files for tests, written by nibabel and changed byte by byte (places of nifti1.h)."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
DB_NAME, DESCRIP, AUX_FILE, QFORM_CODE, SFORM_CODE, SROW_X, INTENT_NAME, MAGIC = 14, 148, 228, 252, 254, 280, 328, 344
HEADER_BYTES, VOXELS_PLACE = 348, 352

VOXELS_XYZ = np.random.default_rng(3).integers(-99, 999, (7, 6, 5)).astype(np.int16)


def rotation(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    """Return a rotation about x, then y, then z."""
    turned = np.eye(3)
    for axis, degrees in enumerate(degrees_xyz):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        first, second = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[first, first], step[first, second], step[second, first], step[second, second] = cos, -sin, sin, cos
        turned = step @ turned
    return turned


def affine_of(axes: np.ndarray, origin: tuple[float, ...] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Return the 4 x 4 matrix of three axes and an origin."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    return affine


def write_nibabel(path: Path, array: np.ndarray, affine: np.ndarray, sform: int = 1, qform: int = 1) -> Path:
    """Write (x, y, z) voxels with an sform and a qform of the given codes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_qform(affine, code=1)
    image.header.set_sform(affine, code=1)
    nib.save(image, path)
    return patched(path, QFORM_CODE, [qform, sform], "<i2")


def patched(path: Path, place: int, value: object, dtype: str) -> Path:
    """Overwrite a header field of a plain or gzipped file."""
    is_gzip = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if is_gzip else path.read_bytes())
    field = np.array(value, dtype=dtype).tobytes()
    content[place : place + len(field)] = field
    path.write_bytes(gzip.compress(bytes(content)) if is_gzip else bytes(content))
    return path


def write_sheared(path: Path, degrees: float, array: np.ndarray = VOXELS_XYZ) -> Path:
    """Write an image whose y axis leans by some degrees towards x."""
    affine = affine_of(np.array([[1.0, np.tan(np.radians(degrees)), 0], [0, 1, 0], [0, 0, 1]]))
    image = nib.Nifti1Image(array, affine)
    image.header.set_sform(affine, code=1)
    image.header.set_qform(None, code=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path
