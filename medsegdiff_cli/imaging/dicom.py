"""DICOM series: one folder, one volume."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.inflating import damaged
from medsegdiff_cli.imaging.itk import array_of, geometry_from_itk, read_itk_geometry, reason_of

_LARGEST_GAP_CHANGE, _LARGEST_ORIENTATION_CHANGE = 0.01, 1e-3
_PREAMBLE_BYTES = 128
_IMAGE_IO = "GDCMImageIO"
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """One series of a folder: its UID and its files, sorted along the slice normal where positions exist."""

    series_id: str
    files: tuple[Path, ...]


def list_dicom_series(folder: Path) -> list[DicomSeries]:
    """Return the image series directly inside `folder`, in the order of their UIDs."""
    reader = sitk.ImageSeriesReader
    return [
        DicomSeries(
            series_id=series_id,
            files=tuple(Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series_id)),
        )
        for series_id in sorted(reader.GetGDCMSeriesIDs(str(folder)))
    ]


def read_dicom_series(folder: Path, series_id: str | None = None) -> Image:
    """Read the series of a folder as (channel, z, y, x), sorted by position along the slice normal.

    Args:
        series_id: which one; None demands that there is one only.

    Raises:
        InputDataError: no or several series, slices missing, doubled, unevenly spaced, tilted or of different size.
    """
    files, gap_mm = _sorted_by_position(_choose(folder, series_id), folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    try:
        native = reader.Execute()
    except RuntimeError as error:
        raise damaged(f"the DICOM series cannot be read ({reason_of(error)})", folder) from error
    geometry = geometry_from_itk(native)
    spacing_mm = geometry.spacing_mm if gap_mm is None else (gap_mm, *geometry.spacing_mm[1:])
    return Image(array=array_of(native, folder), geometry=replace(geometry, spacing_mm=spacing_mm))


def read_dicom_geometry(folder: Path) -> Geometry:
    """Read the grid of the one series of a folder from the headers of its slices."""
    files, gap_mm = _sorted_by_position(_choose(folder, None), folder)
    first = read_itk_geometry(files[0], image_io=_IMAGE_IO)
    if gap_mm is None:
        return first
    return replace(first, shape=(len(files), *first.shape[1:]), spacing_mm=(gap_mm, *first.spacing_mm[1:]))


def _choose(folder: Path, series_id: str | None) -> DicomSeries:
    found = list_dicom_series(folder)
    _refuse_dropped_files(folder, {file.name for series in found for file in series.files})
    if series_id is not None:
        found = [series for series in found if series.series_id == series_id]
    if not found:
        fix = "give an image file, or a folder with the files of one DICOM series"
        raise InputDataError("the folder holds no DICOM series", where=str(folder), fix=fix)
    if len(found) > 1:
        names = ", ".join(f"{series.series_id} ({len(series.files)} files)" for series in found)
        raise InputDataError(
            f"the folder holds {len(found)} DICOM series: {names}",
            where=str(folder),
            fix="put every series into a folder of its own",
        )
    return found[0]


def _refuse_dropped_files(folder: Path, known: set[str]) -> None:
    """GDCM leaves out files that it cannot read, and a series without its last slice looks whole."""
    for file in sorted(folder.iterdir()):
        if file.name in known or not file.is_file() or file.name.upper() == "DICOMDIR":
            continue
        with file.open("rb") as stream:
            if stream.read(_PREAMBLE_BYTES + 4)[_PREAMBLE_BYTES:] == b"DICM":
                raise damaged("a DICOM file that cannot be read, or that is no image", file)


def _sorted_by_position(series: DicomSeries, folder: Path) -> tuple[list[Path], float | None]:
    """Sort the slices along their normal and prove that they form an upright, evenly spaced stack.

    Returns the files and the distance between two slices in mm (None for a single slice).
    """
    if len(series.files) == 1:
        return list(series.files), None
    placed = [(*_read_tags(file), file) for file in series.files]
    axes = placed[0][1]
    normal = np.cross(axes[:3], axes[3:])
    for _, orientation, file in placed:
        if np.abs(orientation - axes).max() > _LARGEST_ORIENTATION_CHANGE:
            raise damaged("slices of different orientation in one series", file)
    placed.sort(key=lambda slice_: float(slice_[0] @ normal))
    files = [file for _, _, file in placed]
    positions = np.array([position for position, _, _ in placed])
    gaps: np.ndarray = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-4 * max(usual, 1e-2):
        index = int(gaps.argmin())
        raise damaged(f"two slices lie at the same place: {files[index].name} and {files[index + 1].name}", folder)
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > _LARGEST_GAP_CHANGE * usual:
        raise damaged(
            f"uneven slices: {gaps[worst]:.4g} mm behind {files[worst].name}, {usual:.4g} mm elsewhere "
            "(is a slice missing?)",
            folder,
        )
    way = positions[-1] - positions[0]
    drift = float(np.linalg.norm(way - (way @ normal) * normal))
    if drift > _LARGEST_GAP_CHANGE * float(way @ normal):
        fix = "resample the scan to an upright grid first"
        raise InputDataError(f"tilted stack: slices drift by {drift:.4g} mm (gantry tilt)", where=str(folder), fix=fix)
    return files, float(way @ normal) / (len(files) - 1)


def _read_tags(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the position (3,) and the two in-plane axes (6,) of a slice."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(_IMAGE_IO)
    try:
        reader.ReadImageInformation()
        texts = [reader.GetMetaData(tag) for tag in (_POSITION, _ORIENTATION)]
        position, orientation = (np.array([float(number) for number in text.split("\\")]) for text in texts)
    except (RuntimeError, ValueError) as error:
        raise damaged("the slice has no position or orientation", file) from error
    if position.shape != (3,) or orientation.shape != (6,):
        raise damaged("the slice has no position or orientation", file)
    return position, orientation
