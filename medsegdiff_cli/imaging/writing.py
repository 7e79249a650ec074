"""Write images and labels: atomic, lossless, on the grid they came from."""

import tempfile
from pathlib import Path

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.itk import write_itk
from medsegdiff_cli.imaging.nifti import nifti_bytes
from medsegdiff_cli.imaging.reading import IMAGE_ENDINGS, ending_of

LOSSY_ENDINGS = (".jpg", ".jpeg")
LOSSLESS_ENDINGS = tuple(ending for ending in IMAGE_ENDINGS if ending not in LOSSY_ENDINGS)
# Level 1 is five times as fast as zlib's default and 10 to 20 % larger on label maps and scans.
DEFAULT_COMPRESSION_LEVEL = 1
_DTYPES = {
    ".png": ("u1", "u2"),
    ".bmp": ("u1",),
    ".tif": ("u1", "i1", "u2", "i2", "u4", "i4", "f4"),
    ".tiff": ("u1", "i1", "u2", "i2", "u4", "i4", "f4"),
}
_ALL_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def write_image(path: Path, image: Image, *, compression_level: int = DEFAULT_COMPRESSION_LEVEL) -> None:
    """Write an image without loss; the format follows from the ending of `path`.

    bool becomes uint8 and float16 becomes float32, any other dtype is kept.

    Args:
        compression_level: 0 to 9, of formats that compress.

    Raises:
        UsageError: an unknown or lossy ending.
        InputDataError: the format cannot hold this dtype, number of channels or axes.
        ResourceError: the disk is full or the folder not writable.
    """
    path = Path(path)
    ending = ending_of(path)
    if ending not in LOSSLESS_ENDINGS:
        what = "loses information" if ending in LOSSY_ENDINGS else "is no image format that can be written"
        raise UsageError(f"'{path.name}' {what}", where=str(path), fix=f"use one of {', '.join(LOSSLESS_ENDINGS)}")
    array = _storable(image.array)
    _refuse_unfit(array, ending, path)
    if ending in (".nii", ".nii.gz"):
        level = compression_level if ending == ".nii.gz" else None
        atomic.write_bytes(path, nifti_bytes(array, image.geometry, compression_level=level))
        return
    storable = Image(array=array, geometry=image.geometry)
    if ending == ".mhd":
        _write_mhd(path, storable, compression_level)
        return
    with atomic.staged(path) as temporary:
        write_itk(temporary, storable, compression_level=compression_level)


def write_label(
    path: Path, label: np.ndarray, geometry: Geometry, *, compression_level: int = DEFAULT_COMPRESSION_LEVEL
) -> None:
    """Write a label map (*spatial) or (1, *spatial) as uint8, or uint16 when a class is above 255.

    Raises:
        InputDataError: values below 0, above 65535 or no integers; otherwise as `write_image`.
    """
    label = label[np.newaxis] if label.ndim == geometry.n_dims else label
    smallest, largest = label.min(), label.max()
    if not (smallest >= 0 and largest <= np.iinfo(np.uint16).max):
        what = f"label values from {smallest} to {largest} do not fit 0 to 65535"
        raise InputDataError(what, where=str(path), fix="renumber the classes")
    smallest_dtype = np.dtype(np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    stored: np.ndarray = label.astype(smallest_dtype, copy=False)
    if label.dtype.kind == "f" and not np.array_equal(stored, label):
        raise InputDataError("label values are no integers", where=str(path), fix="round them first")
    write_image(path, Image(array=stored, geometry=geometry), compression_level=compression_level)


def _storable(array: np.ndarray) -> np.ndarray:
    """Widen the dtypes that no format knows."""
    widened = {"bool": np.uint8, "float16": np.float32}.get(array.dtype.name)
    return array if widened is None else array.astype(widened)


def _refuse_unfit(array: np.ndarray, ending: str, path: Path) -> None:
    dtypes = _DTYPES.get(ending, _ALL_DTYPES)
    if array.dtype.str[1:] not in dtypes:
        names = ", ".join(np.dtype(name).name for name in dtypes)
        raise InputDataError(
            f"{ending} cannot hold {array.dtype} voxels (only {names})", where=str(path), fix="use .nii.gz or .mha"
        )
    if ending in (".png", ".bmp") and (array.ndim != 3 or array.shape[0] not in (1, 3)):
        what = f"{ending} cannot hold an array (channel, *spatial) = {array.shape}"
        raise InputDataError(what, where=str(path), fix="use .nii.gz or .mha")


def _write_mhd(path: Path, image: Image, compression_level: int) -> None:
    """Write `case.mhd` with its voxels in `case.raw` or `case.zraw` beside it; the header comes last."""
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder) / "image.mha"
        write_itk(together, image, compression_level=compression_level)
        content = together.read_bytes()
    marker = b"ElementDataFile = LOCAL\n"
    head, voxels = content.split(marker, 1)
    voxel_file = path.with_suffix(".zraw" if compression_level > 0 else ".raw")
    atomic.write_bytes(voxel_file, voxels)
    atomic.write_bytes(path, head + f"ElementDataFile = {voxel_file.name}\n".encode())
