"""Write one case as nnU-Net wants it: one file a channel (or one colour photograph), labels on the same grid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import collapse_grey, read_image, read_label
from medsegdiff_cli.imaging.writing import write_image, write_label

from .case_source import CaseSource
from .file_ending import PHOTO_ENDINGS
from .label_table import LabelTable

_SAME_GRID_MM = 1e-3
_ALIGNABLE_VOXELS = 0.1
_COLOUR_ENDINGS = (*PHOTO_ENDINGS, ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Readers:
    """A layout's own readers, where a file must be shrunk or renumbered, or is no image; None leaves the usual one.

    Attributes:
        image: path to (channel, *spatial).
        label: path of one label file (or part of a label) to (1, *spatial) integers, which the label table knows.
    """

    image: Callable[[Path], Image] | None = None
    label: Callable[[Path], Image] | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenCase:
    """What became of a case.

    Attributes:
        can_be_colour: a single grey photograph, which may be written again as colour.
        aligned: a label or channel got the first channel's grid.
    """

    source: CaseSource
    file_ending: str
    n_channels: int
    can_be_colour: bool
    aligned: bool


def write_case(
    folder: Path,
    source: CaseSource,
    table: LabelTable,
    file_ending: str,
    readers: Readers,
    *,
    collapse: bool,
    fix_affine: float = 0.0,
) -> WrittenCase:
    """Read a case, prove that its files share one grid, and write it below `folder`.

    Args:
        readers: the layout's own, used instead of `read_image` and `read_label`.
        collapse: write colour files with three equal channels as grey.
        fix_affine: largest shear in degrees that is taken away.

    Raises:
        InputDataError: a file cannot be read, the grids differ, or a label value has no class.
    """
    images = [_read_channels(path, readers, collapse=collapse, fix_affine=fix_affine) for path in source.images]
    grid = images[0].geometry
    moved = [_must_align(image.geometry, grid, path) for image, path in zip(images[1:], source.images[1:], strict=True)]
    channels = [replace(channel, geometry=grid) for image in images for channel in _split(image, file_ending)]
    for index, channel in enumerate(channels):
        write_image(folder / f"images{source.part}" / f"{source.case}_{index:04d}{file_ending}", channel)
    labels = {} if source.label is None else {f"labels{source.part}": source.label}
    labels |= {f"labels{source.part}_{observer}": path for observer, path in source.extra_labels.items()}
    usual = read_label if table.threshold is None else read_image
    for name, path in labels.items():
        parts = (path, *source.more_label) if path == source.label else (path,)
        arrays = []
        for part in parts:
            label = collapse_grey(readers.label(part) if readers.label else usual(part, fix_affine=fix_affine))
            moved.append(_must_align(label.geometry, grid, part))
            arrays.append(table.apply(label.array, str(part)))
        # Where parts overlap the higher class stays; parts of one class are joined.
        _write_integers(folder / name, source.case, file_ending, np.maximum.reduce(arrays), grid)
    if source.mask is not None:
        mask = read_label(source.mask, fix_affine=fix_affine)
        moved.append(_must_align(mask.geometry, grid, source.mask))
        inside = (mask.array != 0).astype(np.uint8)
        _write_integers(folder / f"masks{source.part}", source.case, file_ending, inside, grid)
    return WrittenCase(
        source=source,
        file_ending=file_ending,
        n_channels=sum(channel.array.shape[0] for channel in channels),
        can_be_colour=len(channels) == 1 and grid.n_dims == 2 and not grid.has_physical_spacing,
        aligned=any(moved),
    )


def make_colour(folder: Path, case: WrittenCase) -> None:
    """Write a grey photograph again with three equal channels."""
    path = folder / f"images{case.source.part}" / f"{case.source.case}_0000{case.file_ending}"
    image = read_image(path)
    write_image(path, replace(image, array=np.repeat(image.array[:1], 3, axis=0)))


def _read_channels(path: Path, readers: Readers, *, collapse: bool, fix_affine: float) -> Image:
    usual = partial(read_image, channels_last_axis=True, fix_affine=fix_affine)
    image = (readers.image or usual)(path)
    is_colour = path.suffix.lower() in _COLOUR_ENDINGS
    return collapse_grey(image) if collapse and is_colour else image


def _split(image: Image, file_ending: str) -> list[Image]:
    """Keep a colour photograph in one file, else make one image a channel."""
    if file_ending in _COLOUR_ENDINGS and image.array.shape[0] == 3:
        return [image]
    return [replace(image, array=channel[np.newaxis]) for channel in image.array]


def _must_align(other: Geometry, grid: Geometry, path: Path) -> bool:
    """Say whether `other` differs from `grid` by a little, so that it takes the grid over.

    Raises:
        InputDataError: the shapes differ, or a corner lies further away than a tenth of a voxel.
    """
    if other.shape != grid.shape:
        raise InputDataError(
            f"shape {other.shape} does not fit the image's {grid.shape}",
            where=str(path),
            fix="resample it to the image's grid, or check that the two belong together",
        )
    if not (other.has_physical_spacing and grid.has_physical_spacing):
        return False
    distance_mm = largest_corner_distance_mm(other, grid)
    if distance_mm <= _SAME_GRID_MM:
        return False
    if distance_mm <= _ALIGNABLE_VOXELS * min(grid.spacing_mm):
        return True
    raise InputDataError(
        f"it lies up to {distance_mm:.4g} mm away from the image (spacing {grid.spacing_mm} mm)",
        where=str(path),
        fix="resample it to the image's grid, or correct origin and direction in its header",
    )


def _write_integers(folder: Path, case: str, file_ending: str, array: np.ndarray, grid: Geometry) -> None:
    if array.shape[0] != 1:
        raise InputDataError(f"a label has one channel, not {array.shape[0]}", where=case, fix="store grey values")
    write_label(folder / f"{case}{file_ending}", array, grid)
