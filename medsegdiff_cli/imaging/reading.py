"""Read an image or a label of any supported format, or refuse it: never zeros for what is missing."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError, MsdError, ResourceError, reading_error
from medsegdiff_cli.imaging.dicom import read_dicom_geometry, read_dicom_series
from medsegdiff_cli.imaging.file_checks import check_file
from medsegdiff_cli.imaging.grid_checks import sound_grid
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.itk import read_itk, read_itk_geometry
from medsegdiff_cli.imaging.nifti import read_nifti, read_nifti_geometry
from medsegdiff_cli.imaging.photo_checks import StoredFacts, has_palette, palette_indices_as_grey

IMAGE_ENDINGS: tuple[str, ...] = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
)
NIFTI_ENDINGS = (".nii.gz", ".nii")
_PHOTO_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_LARGEST_ROUNDING = 1e-3
# The machine's trouble, not the file's: the next case would meet it as well.


def ending_of(path: Path | str) -> str:
    """Return the image ending of a file name in lower case (".nii.gz", ".png", ...), "" for any other file."""
    name = Path(path).name.lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending) and name != ending), "")


def case_name_of(path: Path | str) -> str:
    """Return the file name without its image ending; other dots stay ("a.dcm.png" gives "a.dcm")."""
    name = Path(path).name
    return name[: len(name) - len(ending_of(name))]


def read_image(path: Path, *, channels_last_axis: bool = False, fix_affine: float = 0.0) -> Image:
    """Read an image as (channel, *spatial) in the file's own dtype (scaled NIfTI: float32).

    A folder is read as one DICOM series. RGB gives 3 channels; an opaque alpha channel is dropped.

    Args:
        channels_last_axis: take the fourth axis of a NIfTI file (time, echo, modality) as channels.
        fix_affine: largest shear in degrees that gives way to the nearest rigid grid instead of being refused.

    Raises:
        InputDataError: missing, unsupported, truncated, damaged or absurd file; NaN or infinite voxels;
            a transparent alpha channel; more than three spatial axes; a sheared grid.
        ResourceError: the image does not fit into memory, or the disk fails.
    """
    path = Path(path)
    try:
        image = _read(path, channels_last_axis=channels_last_axis, fix_affine=fix_affine)
    except OSError as error:
        raise unreadable(error, path) from error
    except MemoryError as error:
        fix = "use a machine with more memory, or crop the image"
        raise ResourceError("the image does not fit into memory", where=str(path), fix=fix) from error
    _refuse_non_finite(image.array, path)
    return image


def read_label(path: Path, *, fix_affine: float = 0.0) -> Image:
    """Read a label map as (1, *spatial) of an integer dtype.

    Floats within 1e-3 of an integer are rounded; three equal colour channels count as one; the palette indices of
    a PNG are the labels.

    Raises:
        InputDataError: as `read_image`; several differing channels; values that are no integers.
    """
    path = Path(path)
    image = collapse_grey(_read_palette_indices(path) or read_image(path, fix_affine=fix_affine))
    if image.array.shape[0] != 1:
        raise InputDataError(
            f"a label has one channel, this file has {image.array.shape[0]} that differ",
            where=str(path),
            fix="store the label as grey values (no colours, no palette), one integer per class",
        )
    if image.array.dtype.kind in "iu":
        return image
    rounded = np.rint(image.array)
    distance = np.abs(image.array - rounded)
    if distance.max() > _LARGEST_ROUNDING:
        value = float(image.array.flat[int(distance.argmax())])
        raise InputDataError(f"label value {value:g} is no integer", where=str(path), fix="store labels as integers")
    if np.abs(rounded).max() >= 2**31:
        raise InputDataError(f"label value {rounded.max():g} is too large", where=str(path), fix="use small integers")
    return replace(image, array=rounded.astype(np.int32))


def read_geometry(path: Path, *, fix_affine: float = 0.0) -> Geometry:
    """Read the grid from the header alone, without proof that the voxels are whole.

    Raises:
        InputDataError: as `read_image`, for faults that the header shows.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return sound_grid(read_dicom_geometry(path), path, fix_affine)
        ending = _known_ending(path)
        if ending in NIFTI_ENDINGS:
            return read_nifti_geometry(path, fix_affine=fix_affine)
        facts = check_file(path, ending, header_only=True)
        return _photo_geometry(read_itk_geometry(path), ending, facts, path, fix_affine)
    except OSError as error:
        raise unreadable(error, path) from error


def collapse_grey(image: Image) -> Image:
    """Return the image with one channel if its three are equal, else unchanged."""
    array = image.array
    if array.shape[0] != 3 or not (np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2])):
        return image
    return replace(image, array=array[:1].copy())


def _read(path: Path, *, channels_last_axis: bool, fix_affine: float) -> Image:
    if path.is_dir():
        series = read_dicom_series(path)
        return replace(series, geometry=sound_grid(series.geometry, path, fix_affine))
    ending = _known_ending(path)
    if ending in NIFTI_ENDINGS:
        return read_nifti(path, channels_last_axis=channels_last_axis, fix_affine=fix_affine)
    facts = check_file(path, ending)
    array, geometry = read_itk(path)
    grid = _photo_geometry(geometry, ending, facts, path, fix_affine)
    image = Image(array=_drop_opaque_alpha(array, path), geometry=grid)
    return collapse_grey(image) if facts.is_grey else image


def _read_palette_indices(path: Path) -> Image | None:
    """Return the indices of a PNG with a palette, None for any other file."""
    if not path.is_file() or ending_of(path) != ".png" or not has_palette(path):
        return None
    check_file(path, ".png")
    grey, factor = palette_indices_as_grey(path.read_bytes(), path)
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "label.png"
        rewritten.write_bytes(grey)
        array, geometry = read_itk(rewritten)
    return Image(array=array // factor, geometry=Geometry.plain(geometry.shape, has_physical_spacing=False))


def _known_ending(path: Path) -> str:
    if not path.exists():
        what = "a link that leads nowhere, or in a circle" if path.is_symlink() else "file not found"
        raise InputDataError(what, where=str(path), fix="check the path")
    ending = ending_of(path)
    if not ending:
        fix = f"supported: {', '.join(IMAGE_ENDINGS)} and folders with one DICOM series"
        raise InputDataError(f"'{path.name}' is no supported image file", where=str(path), fix=fix)
    return ending


def unreadable(error: OSError, path: Path) -> MsdError:
    """Return what it means that the system cannot read a file: its rights, or a disk or a network that fails."""
    return reading_error(error, str(path), InputDataError, fix="check path and rights")


def _photo_geometry(geometry: Geometry, ending: str, facts: StoredFacts, path: Path, fix_affine: float) -> Geometry:
    """Take away the spacing of formats that know only printing resolutions; check that of the others."""
    if not 2 <= geometry.n_dims <= 3:
        fix = "split the image into volumes of three axes"
        raise InputDataError(f"the image has {geometry.n_dims} axes: {geometry.shape}", where=str(path), fix=fix)
    if ending in _PHOTO_ENDINGS or not facts.has_physical_spacing:
        return Geometry.plain(geometry.shape, has_physical_spacing=False)
    return sound_grid(geometry, path, fix_affine)


def _drop_opaque_alpha(array: np.ndarray, path: Path) -> np.ndarray:
    if array.shape[0] not in (2, 4) or array.dtype.kind != "u":
        return array
    opaque = np.iinfo(array.dtype).max
    if array[-1].min() != opaque:
        raise InputDataError(
            f"the image has a transparent alpha channel (down to {array[-1].min()} of {opaque})",
            where=str(path),
            fix="save it without transparency",
        )
    return np.ascontiguousarray(array[:-1])


def _refuse_non_finite(array: np.ndarray, path: Path) -> None:
    # The extremes are NaN or infinite exactly when a voxel is; this takes no memory.
    if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    n_bad = int(array.size - np.isfinite(array).sum())
    fix = "replace them (0 or the smallest value are usual) before the image is used"
    raise InputDataError(f"{n_bad} voxels are NaN or infinite", where=str(path), fix=fix)
