"""DICOM series: one folder, one volume."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.inflating import damaged
from medsegdiff_cli.imaging.itk import array_of, geometry_from_itk, reason_of

_LARGEST_GAP_CHANGE = 0.01
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
        InputDataError: no or several series, slices missing, doubled, unevenly spaced or of different size.
    """
    series = _choose(folder, series_id)
    files = _sorted_by_position(series, folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    try:
        native = reader.Execute()
    except RuntimeError as error:
        raise damaged(f"the DICOM series cannot be read ({reason_of(error)})", folder) from error
    return Image(array=array_of(native, folder), geometry=geometry_from_itk(native))


def read_dicom_geometry(folder: Path) -> Geometry:
    """Read the grid of the one series of a folder."""
    return read_dicom_series(folder).geometry


def _choose(folder: Path, series_id: str | None) -> DicomSeries:
    found = list_dicom_series(folder)
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


def _sorted_by_position(series: DicomSeries, folder: Path) -> list[Path]:
    """Sort the slices along their normal and prove that the distances between them are even."""
    if len(series.files) == 1:
        return list(series.files)
    placed = [(_read_tags(file), file) for file in series.files]
    first = placed[0][0]
    normal = np.cross(first[1][:3], first[1][3:])
    for (_, orientation), file in placed:
        if np.abs(orientation - first[1]).max() > 1e-3:
            raise damaged("slices of different orientation in one series", file)
    order = sorted((float(position @ normal), str(file)) for (position, _), file in placed)
    gaps: np.ndarray = np.diff(np.array([place for place, _ in order]))
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-4 * max(usual, 1e-6):
        index = int(gaps.argmin())
        names = f"{Path(order[index][1]).name} and {Path(order[index + 1][1]).name}"
        raise damaged(f"two slices lie at the same place: {names}", folder)
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > _LARGEST_GAP_CHANGE * usual:
        raise damaged(
            f"uneven slices: {gaps[worst]:.4g} mm behind {Path(order[worst][1]).name}, {usual:.4g} mm elsewhere "
            "(is a slice missing?)",
            folder,
        )
    return [Path(name) for _, name in order]


def _read_tags(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the position (3,) and the two in-plane axes (6,) of a slice."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
        texts = [reader.GetMetaData(tag) for tag in (_POSITION, _ORIENTATION)]
        position, orientation = (np.array([float(number) for number in text.split("\\")]) for text in texts)
    except (RuntimeError, ValueError) as error:
        raise damaged("the slice has no position or orientation", file) from error
    if position.shape != (3,) or orientation.shape != (6,):
        raise damaged("the slice has no position or orientation", file)
    return position, orientation
