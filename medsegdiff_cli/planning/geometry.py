"""Geometry: the grid that all cases share, by common voxel size or by common image size."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint, Fingerprint
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.planning.nnunet_rules import median_shape, target_spacing, transpose_for
from medsegdiff_cli.planning.overrides import PlanOverrides

SIZE_STEP = 32
USUAL_LONGEST_EDGE = 256
FINE_LONGEST_EDGE = 512
THIN_VOXELS = 3.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The common grid, in plan order.

    Attributes:
        spacing_mm: target spacing; None with geometry `resize`.
        size_voxels: fixed size of `resize`, of all axes or of the slices' two; None with geometry `spacing`.
        median: median shape on the grid, after the centre crop.
        n_slices: median native extent along the first axis, for 2D configurations of volumes.
        sentences: why.
    """

    geometry: Literal["spacing", "resize"]
    crop: Literal["nonzero", "mask", "none"]
    transpose: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    size_voxels: tuple[int, ...] | None
    median: tuple[float, ...]
    n_slices: int
    sentences: tuple[str, ...]


def choose_grid(fingerprint: Fingerprint, overrides: PlanOverrides) -> Grid:
    """Choose between a common voxel size and a common image size, and the numbers.

    Raises:
        UsageError: overrides that contradict each other or the images' axes.
    """
    cases = fingerprint.training_cases()
    geometry, why = _choose_geometry(cases, overrides)
    _check(overrides, geometry, len(cases[0].shape_voxels))
    crop = overrides.crop or ("none" if geometry == "resize" else "nonzero")
    shapes = [case.shape_after_crop_voxels if crop == "nonzero" else case.shape_voxels for case in cases]
    if geometry == "spacing":
        return _by_spacing(cases, shapes, crop, overrides, why)
    return _by_size(cases, shapes, crop, overrides, why)


def thickness_voxels(cases: Sequence[CaseFingerprint]) -> dict[str, float]:
    """Return the median thickness of each class in native voxels: twice its volume over its boundary."""
    found: dict[str, list[float]] = {}
    for case in cases:
        for name, boundary in case.class_boundary_voxels.items():
            if boundary:
                found.setdefault(name, []).append(2 * case.class_voxels[name] / boundary)
    return {name: statistics.median(values) for name, values in found.items()}


def _choose_geometry(
    cases: Sequence[CaseFingerprint], overrides: PlanOverrides
) -> tuple[Literal["spacing", "resize"], str]:
    if overrides.geometry:
        return overrides.geometry, "as asked for"
    if overrides.size_voxels:
        return "resize", "since a size was given"
    if overrides.target_spacing_mm:
        return "spacing", "since a target spacing was given"
    if len(cases[0].shape_voxels) == 2 and not all(case.has_physical_spacing for case in cases):
        return "resize", "since these are 2D images without physical spacing"
    kind = "volumes" if len(cases[0].shape_voxels) == 3 else "images with physical spacing"
    return "spacing", f"since these are {kind}"


def _check(overrides: PlanOverrides, geometry: str, n_axes: int) -> None:
    contradictory = "target_spacing_mm" if geometry == "resize" else "size_voxels"
    if getattr(overrides, contradictory) is not None:
        raise UsageError(
            f"'{contradictory}' does not go with geometry '{geometry}'", where="plan", fix="give one of the two"
        )
    for key in ("target_spacing_mm", "size_voxels", "centre_crop"):
        given = getattr(overrides, key)
        allowed = (n_axes,) if key == "target_spacing_mm" else (2, n_axes)
        if given is not None and (len(given) not in allowed or min(given) <= 0):
            raise UsageError(
                f"'{key}' is {list(given)}, the images have {n_axes} axes",
                where="plan",
                fix=f"give {n_axes} positive numbers",
            )


def _by_spacing(
    cases: Sequence[CaseFingerprint],
    shapes: Sequence[Sequence[int]],
    crop: Literal["nonzero", "mask", "none"],
    overrides: PlanOverrides,
    why: str,
) -> Grid:
    spacings = [case.spacing_mm for case in cases]
    target = overrides.target_spacing_mm or target_spacing(spacings, shapes)
    transpose = transpose_for(target)
    native = median_shape(shapes, spacings, target)
    spacing = tuple(float(target[axis]) for axis in transpose)
    median = _after_crop([native[axis] for axis in transpose], overrides.centre_crop)
    origin = "the median" if len(set(spacings)) > 1 else "that of all cases"
    if overrides.target_spacing_mm:
        origin = "as asked for"
    unit = "mm" if all(case.has_physical_spacing for case in cases) else "px"
    sentences = [
        f"All cases are resampled to a voxel size of {_times(spacing)} {unit} ({origin}), {why}; "
        f"the median image then has {_times(median)} voxels."
    ]
    if transpose != tuple(range(len(transpose))):
        sentences.append(f"Axes are reordered to {transpose}, so that the coarsest comes first.")
    sentences += _crop_in_words(overrides.centre_crop)
    return Grid(
        geometry="spacing",
        crop=crop,
        transpose=transpose,
        spacing_mm=spacing,
        size_voxels=None,
        median=median,
        n_slices=_median_slices(shapes, transpose, overrides.centre_crop),
        sentences=tuple(sentences),
    )


def _by_size(
    cases: Sequence[CaseFingerprint],
    shapes: Sequence[Sequence[int]],
    crop: Literal["nonzero", "mask", "none"],
    overrides: PlanOverrides,
    why: str,
) -> Grid:
    n_axes = len(shapes[0])
    transpose = transpose_for(target_spacing([case.spacing_mm for case in cases], shapes))
    medians = [statistics.median(shape[axis] for shape in shapes) for axis in transpose]
    if overrides.size_voxels:
        size, reason = overrides.size_voxels, "as asked for"
    else:
        size, reason = _default_size(medians, thickness_voxels(cases))
    n_slices = _median_slices(shapes, transpose, overrides.centre_crop)
    whole = size if len(size) == n_axes else (n_slices, *size)
    return Grid(
        geometry="resize",
        crop=crop,
        transpose=transpose,
        spacing_mm=None,
        size_voxels=tuple(size),
        median=_after_crop(whole, overrides.centre_crop),
        n_slices=n_slices,
        sentences=(
            f"Every image is resized to {_times(size)} voxels{'' if reason == why else f' ({reason})'}, {why}; "
            "predictions return to each image's own grid.",
            *_crop_in_words(overrides.centre_crop),
        ),
    )


def _default_size(medians: Sequence[float], thickness: dict[str, float]) -> tuple[tuple[int, ...], str]:
    """Return the median shape, scaled down to a longest edge of 256, or of 512 where structures are thin."""
    longest = max(medians)
    limit, reason = USUAL_LONGEST_EDGE, f"the median shape with at most {USUAL_LONGEST_EDGE} along an edge"
    if thickness:
        thinnest = min(thickness, key=lambda name: thickness[name])
        scaled = thickness[thinnest] * min(1.0, USUAL_LONGEST_EDGE / longest)
        if scaled < THIN_VOXELS < longest and longest > USUAL_LONGEST_EDGE:
            limit = FINE_LONGEST_EDGE
            reason = (
                f"at most {FINE_LONGEST_EDGE} along an edge, because '{thinnest}' would be only {scaled:.1f} voxels "
                f"thick at {USUAL_LONGEST_EDGE}; --size changes it"
            )
    factor = min(1.0, limit / longest)
    return tuple(max(SIZE_STEP, round(edge * factor / SIZE_STEP) * SIZE_STEP) for edge in medians), reason


def _after_crop(shape: Sequence[float], centre_crop: tuple[int, ...] | None) -> tuple[float, ...]:
    """Return the shape with its last axes replaced by the centre crop's."""
    if centre_crop is None:
        return tuple(shape)
    return (*shape[: len(shape) - len(centre_crop)], *centre_crop)


def _crop_in_words(centre_crop: tuple[int, ...] | None) -> list[str]:
    if centre_crop is None:
        return []
    return [f"Only the central {_times(centre_crop)} voxels are used; predictions are background outside of them."]


def _median_slices(
    shapes: Sequence[Sequence[int]], transpose: Sequence[int], centre_crop: tuple[int, ...] | None
) -> int:
    if len(transpose) == 2:
        return 1
    if centre_crop is not None and len(centre_crop) == len(transpose):
        return centre_crop[0]
    return max(1, math.floor(statistics.median(shape[transpose[0]] for shape in shapes)))


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
