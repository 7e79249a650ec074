"""NIfTI files: read once, inflated once with proof, decoded from memory; written bit-stably without patient data.

Native readers return zeros for the missing part of a truncated file; this one refuses it.
"""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.inflating import (
    GZIP_MAGIC,
    GZIP_WINDOW_BITS,
    damaged,
    inflate_start,
    inflate_whole,
    read_stored,
)
from medsegdiff_cli.imaging.nifti_header import (
    DATA_TYPES,
    LONGEST_HEADER_BYTES,
    NiftiHeader,
    geometry_of,
    parse_header,
)

_START_BYTES = 1 << 12
# Of several small members in a row; a single one needs a thousandth at most.
_MOST_GZIP_OVERHEAD = 2
_SHORTEST_EXTENSION_BYTES = 8
_LARGEST_NIFTI1_SIZE = 2**15 - 1


def read_nifti(path: Path, *, channels_last_axis: bool, fix_affine: float) -> Image:
    """Read a `.nii` or `.nii.gz` file; see `reading.read_image`."""
    header, is_gzip = _read_header(path)
    geometry = geometry_of(header, path, fix_affine=fix_affine)
    if header.n_channels > 1 and not channels_last_axis:
        raise InputDataError(
            f"the image has {header.n_channels} volumes in one file (dim {[int(d) for d in header.fields['dim']]})",
            where=str(path),
            fix="split it into one file per channel (`msd convert decathlon` does it)",
        )
    expected_bytes, found_bytes = header.offset_bytes + header.n_data_bytes, path.stat().st_size
    if not is_gzip and found_bytes != expected_bytes:
        raise damaged(f"the file holds {found_bytes} bytes where its header announces {expected_bytes}", path)
    if is_gzip and found_bytes > _MOST_GZIP_OVERHEAD * expected_bytes + _START_BYTES:
        raise damaged(f"{found_bytes} compressed bytes are too many for the {expected_bytes} that are announced", path)
    stored = read_stored(path)
    content = inflate_whole(stored, expected_bytes, path, GZIP_WINDOW_BITS) if is_gzip else stored
    del stored
    if len(content) != expected_bytes:
        raise damaged(f"the file holds {len(content)} bytes where its header announces {expected_bytes}", path)
    _check_extensions(content[: header.offset_bytes], header, path)
    return Image(array=_voxels(content, header), geometry=geometry)


def read_nifti_geometry(path: Path, *, fix_affine: float) -> Geometry:
    """Read the grid from the header alone."""
    return geometry_of(_read_header(path)[0], path, fix_affine=fix_affine)


def _read_header(path: Path) -> tuple[NiftiHeader, bool]:
    """Return the header, and whether the file is compressed, as its name must say.

    Raises:
        InputDataError: an empty file, a name that tells something else, or a header that no valid image can have.
    """
    with path.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if not start:
        raise damaged("the file is empty (0 bytes)", path)
    is_gzip, is_called_gzip = start[:2] == GZIP_MAGIC, path.name.lower().endswith(".gz")
    if is_gzip:
        start = inflate_start(start, LONGEST_HEADER_BYTES, path)
    header = parse_header(start, path)
    if is_gzip != is_called_gzip:
        raise InputDataError(
            "the file is compressed, its name says it is not" if is_gzip else "the file is not compressed with gzip",
            where=str(path),
            fix=f"rename it to end in {'.nii.gz' if is_gzip else '.nii'}",
        )
    return header, is_gzip


def _check_extensions(head: bytes | bytearray, header: NiftiHeader, path: Path) -> None:
    """Walk over the header extensions, which are not used (they may name the patient) but must lie before the voxels.

    Raises:
        InputDataError: an extension shorter than its own head, or longer than the room there is.
    """
    position = header.fields.dtype.itemsize
    length = np.dtype("i4").newbyteorder(header.fields.dtype["datatype"].byteorder)
    if not any(head[position : position + 1]):
        return
    position += 4
    while any(head[position:]):
        n_bytes = int(np.frombuffer(head, length, 1, position)[0]) if len(head) - position >= length.itemsize else 0
        if not _SHORTEST_EXTENSION_BYTES <= n_bytes <= len(head) - position:
            raise damaged(f"a header extension of {n_bytes} bytes where {len(head) - position} are left", path)
        position += n_bytes


def nifti_bytes(array: np.ndarray, geometry: Geometry, *, compression_level: int | None) -> bytes:
    """Return a NIfTI file holding `array` (channel, *spatial); equal input gives equal bytes.

    The affine, its codes and the units of a geometry that came from a NIfTI file are kept bit by bit; any other
    geometry becomes an sform and a qform with code 1 in millimetres. All text fields stay empty.

    Args:
        compression_level: of gzip; None leaves the file uncompressed.
    """
    header = _header_like_source(geometry)
    if header is None or not _same_grid(header, array, geometry):
        header = _header_from_grid(geometry, array)
    _set_voxel_fields(header, array)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    head = header.binaryblock + b"\0\0\0\0"
    if compression_level is None:
        return head + little.tobytes()
    # A gzip stream of a compressobj carries no file name and mtime 0.
    deflater = zlib.compressobj(compression_level, zlib.DEFLATED, GZIP_WINDOW_BITS)
    return b"".join([deflater.compress(head), deflater.compress(little), deflater.flush()])


def _voxels(content: bytes | bytearray, header: NiftiHeader) -> np.ndarray:
    """Return (channel, *spatial) in native byte order; scaled values are float32 (float64 where stored so)."""
    shape = (header.n_channels, *header.shape_xyz[::-1])
    stored = np.frombuffer(content, dtype=header.dtype, offset=header.offset_bytes).reshape(shape)
    if header.slope == 1.0 and header.intercept == 0.0:
        native = header.dtype.newbyteorder("=")
        return stored.astype(native, copy=not (stored.flags.writeable and stored.flags.aligned))
    values: np.ndarray = np.empty(shape, dtype=np.float64 if header.dtype.itemsize == 8 else np.float32)
    # What overflows becomes infinite, and infinite voxels are refused.
    with np.errstate(over="ignore", invalid="ignore"):
        for channel in range(shape[0]):
            for position in range(shape[1]):
                scaled = stored[channel, position].astype(np.float64) * header.slope + header.intercept
                values[channel, position] = scaled
    return values


def _header_like_source(geometry: Geometry) -> nib.Nifti1Header | None:
    """Return a header with the source file's own affine fields, or None when the source was no NIfTI file."""
    kept = geometry.file_header
    if kept.get("format") != "nifti":
        return None
    header = nib.Nifti2Header() if kept["version"] == 2 else nib.Nifti1Header()
    for name, value in zip("bcd", kept["quaternion"], strict=True):
        header[f"quatern_{name}"] = value
    for name, value in zip("xyz", kept["qoffset"], strict=True):
        header[f"qoffset_{name}"] = value
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = kept["srow"][4 * row : 4 * row + 4]
    header["pixdim"][:4] = kept["pixdim"]
    for name in ("qform_code", "sform_code", "xyzt_units"):
        header[name] = kept[name]
    return header


def _same_grid(header: nib.Nifti1Header, array: np.ndarray, geometry: Geometry) -> bool:
    """Say whether the source's affine still holds: it does not after a crop or a resampling of the geometry."""
    _set_voxel_fields(header, array)
    try:
        read_back = geometry_of(parse_header(header.binaryblock, Path("header")), Path("header"))
    except InputDataError:
        return False
    return largest_corner_distance_mm(read_back, geometry) <= 1e-3 * min(geometry.spacing_mm)


def _header_from_grid(geometry: Geometry, array: np.ndarray) -> nib.Nifti1Header:
    too_long = max(array.shape) > _LARGEST_NIFTI1_SIZE
    header = nib.Nifti2Header() if too_long else nib.Nifti1Header()
    n = geometry.n_dims
    affine = np.eye(4)
    affine[:n, :n], affine[:n, 3] = geometry.affine_itk()[:n, :n], geometry.affine_itk()[:n, n]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine + 0.0
    header.set_data_shape((*geometry.shape[::-1],))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    header["pixdim"][1 : n + 1] = geometry.spacing_mm[::-1]
    header.set_xyzt_units("mm")
    return header


def _set_voxel_fields(header: nib.Nifti1Header, array: np.ndarray) -> None:
    """Fill in size, type and scaling; several channels become the fourth axis."""
    sizes_xyz = list(array.shape[:0:-1])
    if array.shape[0] > 1:
        sizes_xyz += [1] * (3 - len(sizes_xyz)) + [array.shape[0]]
    header["dim"] = [len(sizes_xyz), *sizes_xyz, *[1] * (7 - len(sizes_xyz))]
    header["datatype"] = next(code for code, name in DATA_TYPES.items() if np.dtype(name) == array.dtype)
    header["bitpix"] = 8 * array.dtype.itemsize
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
