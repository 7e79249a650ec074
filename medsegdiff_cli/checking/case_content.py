"""Checks on the voxels and the grid of one case; no damaged file stops the others."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, Part
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.checking.problem import Problem
from medsegdiff_cli.errors import MsdError
from medsegdiff_cli.imaging.grid_checks import notes_on
from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import read_image, read_label

SAME_GRID_MM = 1e-3
ALIGNABLE_VOXELS = 0.1
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 1e-3, 100.0


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What the comparison of cases needs of one case.

    Attributes:
        content_digest: sha256 of the decoded voxels of all channels; "" when a file could not be read.
        orientation: axis directions such as "LPS", in array order reversed (x, y, z).
        label_values: file values in the label; None without a readable label.
    """

    case: str
    part: Part
    group: str
    problems: tuple[Problem, ...]
    content_digest: str = ""
    n_dims: int = 0
    orientation: str = ""
    label_values: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What dataset.json says of every case."""

    channel_names: tuple[str, ...]
    scheme: LabelScheme | None
    extra_folders: tuple[Path, ...] = field(default=())


def examine_case(files: CaseFiles, part: Part, expected: Expected) -> CaseFacts:
    """Read all files of a case and list what is wrong with them; never raises for a bad file."""
    problems: list[Problem] = []
    facts = CaseFacts(case=files.case, part=part, group=files.group, problems=())
    images = [image for path in files.images if (image := _try_reading(path, problems, files.case)) is not None]
    if images and len(images) == len(files.images):
        problems += _check_images(files, images, expected)
        facts = replace(facts, content_digest=digest_of_voxels(images), n_dims=images[0].geometry.n_dims)
        facts = replace(facts, orientation=orientation_of(images[0].geometry))
    grid = images[0].geometry if images else None
    values: frozenset[int] | None = None
    for path in _label_files(files, expected):
        label = _try_reading(path, problems, files.case, is_label=True)
        if label is None:
            continue
        problems += _check_grid(files.case, path, label.geometry, grid)
        if path == files.mask:
            continue
        found, counts = np.unique(label.array, return_counts=True)
        problems += _check_values(files.case, path, dict(zip(found.tolist(), counts.tolist(), strict=True)), expected)
        if label.array.dtype == np.int32:
            problems += _check_stored_as_float(files.case, path, label.array)
        if path == files.label:
            values = frozenset(found.tolist())
    return replace(facts, problems=tuple(problems), label_values=values)


def orientation_of(geometry: Geometry) -> str:
    """Return where the x, y and z axes point to, for example "LPS"; "" for images without physical spacing."""
    n = geometry.n_dims
    if not geometry.has_physical_spacing:
        return ""
    direction: np.ndarray = np.reshape(geometry.direction, (n, n))
    letters = ("LR", "PA", "SI")
    largest = np.abs(direction).argmax(axis=0)
    return "".join(letters[row][0 if direction[row, axis] > 0 else 1] for axis, row in enumerate(largest))


def _label_files(files: CaseFiles, expected: Expected) -> list[Path]:
    extra = [folder / files.label.name for folder in expected.extra_folders] if files.label else []
    return [path for path in (files.label, files.mask) if path] + [path for path in extra if path.is_file()]


def _try_reading(path: Path, problems: list[Problem], case: str, *, is_label: bool = False) -> Image | None:
    try:
        return read_label(path) if is_label else read_image(path)
    except MsdError as error:
        code = "non-finite" if "NaN" in error.what else "unreadable"
        if is_label and "integer" in error.what:
            code = "label-not-integer"
        message, fix = f"{path.parent.name}/{path.name}: {error.what}", error.fix or ""
    except Exception as error:  # a decoder's own fault must not hide the other cases' problems
        code, message = "unreadable", f"{path.parent.name}/{path.name}: {type(error).__name__}: {error}"
        fix = "restore the file from its source"
    problems.append(Problem(severity="error", code=code, case=case, message=message, fix=fix))
    return None


def _check_images(files: CaseFiles, images: list[Image], expected: Expected) -> Iterator[Problem]:
    n_channels = sum(image.array.shape[0] for image in images)
    if n_channels != len(expected.channel_names):
        message = f"{n_channels} channels, {len(expected.channel_names)} are declared"
        fix = "complete the case, or correct channel_names"
        yield Problem(severity="error", code="channel-count", case=files.case, message=message, fix=fix)
    for path, image in zip(files.images[1:], images[1:], strict=True):
        yield from _check_grid(files.case, path, image.geometry, images[0].geometry)
    yield from _check_spacing(files.case, images[0].geometry)
    for note in notes_on(images[0].geometry):
        fix = "correct the header if the note is not what is meant"
        yield Problem(severity="warning", code="grid-guessed", case=files.case, message=note, fix=fix)
    names = iter(expected.channel_names)
    for path, image in zip(files.images, images, strict=True):
        for channel in image.array:
            yield from _check_intensities(files.case, path, channel, next(names, ""))


def _check_spacing(case: str, grid: Geometry) -> Iterator[Problem]:
    if min(grid.spacing_mm) < _SMALLEST_SPACING_MM or max(grid.spacing_mm) > _LARGEST_SPACING_MM:
        message = f"spacing {tuple(round(s, 6) for s in grid.spacing_mm)} mm (z, y, x)"
        fix = "check the header's unit: it must be millimetres"
        yield Problem(severity="warning", code="absurd-spacing", case=case, message=message, fix=fix)


def _check_intensities(case: str, path: Path, channel: np.ndarray, name: str) -> Iterator[Problem]:
    smallest, largest = float(channel.min()), float(channel.max())
    if smallest == largest:
        message = f"{path.name} is constant ({smallest:g})"
        fix = "check the export; leave the case out if the image is empty"
        yield Problem(severity="warning", code="constant-image", case=case, message=message, fix=fix)
    elif name.casefold() == "ct" and (smallest >= 0 or largest > 1e5):
        message = f"{path.name} is declared CT, but its values ({smallest:g} to {largest:g}) are no Hounsfield units"
        fix = "apply the rescale intercept, or give the channel another name"
        yield Problem(severity="warning", code="ct-not-hounsfield", case=case, message=message, fix=fix)


def _check_grid(case: str, path: Path, other: Geometry, grid: Geometry | None) -> Iterator[Problem]:
    name = f"{path.parent.name}/{path.name}"
    if grid is None:
        return
    if other.shape != grid.shape:
        message = f"{name}: shape {other.shape}, the image has {grid.shape}"
        fix = "resample it to the image's grid, or check that the two belong together"
        yield Problem(severity="error", code="shape", case=case, message=message, fix=fix)
        return
    distance_mm = largest_corner_distance_mm(other, grid)
    if distance_mm <= SAME_GRID_MM or not (other.has_physical_spacing and grid.has_physical_spacing):
        return
    if distance_mm <= ALIGNABLE_VOXELS * min(grid.spacing_mm):
        message = f"{name}: {distance_mm:.3g} mm beside the image, less than a tenth of a voxel; taken as equal"
        yield Problem(severity="note", code="geometry-rounded", case=case, message=message)
        return
    differing = ", ".join(
        part
        for part in ("spacing_mm", "origin_mm", "direction")
        if not np.allclose(getattr(other, part), getattr(grid, part))
    )
    message = f"{name}: up to {distance_mm:.4g} mm away from the image ({differing or 'geometry'} differs)"
    fix = "resample it to the image's grid, or correct its header"
    yield Problem(severity="error", code="geometry", case=case, message=message, fix=fix)


def _check_values(case: str, path: Path, counts: dict[int, int], expected: Expected) -> Iterator[Problem]:
    scheme, name = expected.scheme, f"{path.parent.name}/{path.name}"
    if scheme is None:
        return
    known = {*scheme.values, *([] if scheme.ignore_value is None else [scheme.ignore_value])}
    unknown = {value: n for value, n in counts.items() if value not in known}
    if unknown:
        listed = ", ".join(f"{value} ({n}x)" for value, n in sorted(unknown.items())[:5])
        listed += ", ..." if len(unknown) > 5 else ""
        message = f"{name}: {len(unknown)} undeclared values: {listed}; declared: {sorted(known)}"
        fix = "add them to `labels`, or convert the labels (`msd convert folder --label-map / --threshold`)"
        yield Problem(severity="error", code="undeclared-values", case=case, message=message, fix=fix)
    elif not set(counts) & set(scheme.values[1:]):
        message = f"{name} holds no foreground"
        fix = "check that the structure is really absent"
        yield Problem(severity="warning", code="no-foreground", case=case, message=message, fix=fix)


def _check_stored_as_float(case: str, path: Path, rounded: np.ndarray) -> Iterator[Problem]:
    stored = read_image(path).array
    if stored.dtype.kind == "f":
        exact = np.array_equal(stored[:1], rounded)
        how = "as floating point" if exact else "as floating point that is not quite integer"
        message = f"{path.parent.name}/{path.name} is stored {how}; it is rounded here"
        fix = "nnU-Net refuses or warns: save it as uint8 (`msd convert nnunet` does)"
        yield Problem(severity="note" if exact else "warning", code="float-label", case=case, message=message, fix=fix)


def digest_of_voxels(images: list[Image]) -> str:
    """Return the sha256 of shapes, types and voxels; how the files are compressed does not matter."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.array.shape} {image.array.dtype}".encode())
        digest.update(np.ascontiguousarray(image.array).data)
    return digest.hexdigest()
