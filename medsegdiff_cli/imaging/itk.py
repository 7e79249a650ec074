"""Images through SimpleITK: every format but NIfTI."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError, ResourceError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.inflating import damaged

# ITK's warnings would go to stderr past the log; what they warn of is checked here and raised.
sitk.ProcessObject.GlobalWarningDisplayOff()

COMPLEX_OR_UNKNOWN = "complex"


def read_itk(path: Path, *, image_io: str = "") -> tuple[np.ndarray, Geometry]:
    """Read a file whose size was checked before; returns (channel, *spatial) in the file's dtype and its grid.

    Raises:
        InputDataError: ITK cannot read the file, or its voxels are no real numbers.
    """
    try:
        image = sitk.ReadImage(str(path), imageIO=image_io)
    except RuntimeError as error:
        raise damaged(f"the file cannot be read ({reason_of(error)})", path) from error
    return array_of(image, path), geometry_from_itk(image)


def read_itk_geometry(path: Path, *, image_io: str = "") -> Geometry:
    """Read the grid from the header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(image_io)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(f"the header cannot be read ({reason_of(error)})", path) from error
    return geometry_from_itk(reader)


def geometry_from_itk(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    """Return the grid of a SimpleITK image, or of a reader that has read a header."""
    return Geometry(
        shape=tuple(int(s) for s in image.GetSize()[::-1]),
        spacing_mm=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin_mm=tuple(float(o) + 0.0 for o in image.GetOrigin()),
        direction=tuple(float(d) + 0.0 for d in image.GetDirection()),
    )


def array_of(image: sitk.Image, path: Path) -> np.ndarray:
    """Return the voxels as (channel, *spatial)."""
    name = image.GetPixelIDTypeAsString()
    if COMPLEX_OR_UNKNOWN in name:
        raise InputDataError(f"voxels of type '{name}' cannot be used", where=str(path), fix="store real numbers")
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        return array[np.newaxis]
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def write_itk(path: Path, image: Image, *, compression_level: int) -> None:
    """Write to `path` directly; the caller makes it atomic.

    Raises:
        ResourceError: the file cannot be written.
    """
    array, geometry = image.array, image.geometry
    is_vector = array.shape[0] > 1
    voxels = np.ascontiguousarray(np.moveaxis(array, 0, -1)) if is_vector else array[0]
    native = sitk.GetImageFromArray(voxels, isVector=is_vector)
    native.SetSpacing(geometry.spacing_mm[::-1])
    native.SetOrigin(geometry.origin_mm)
    native.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(native, str(path), useCompression=compression_level > 0, compressionLevel=compression_level)
    except RuntimeError as error:
        fix = "check the disk and the rights of the folder"
        raise ResourceError(f"writing failed ({reason_of(error)})", where=str(path), fix=fix) from error


def reason_of(error: RuntimeError) -> str:
    """Return the last sentence of an ITK error, without its source file and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split("): ", 1)[-1].removeprefix("sitk::ERROR: ") if lines else "unknown reason"
