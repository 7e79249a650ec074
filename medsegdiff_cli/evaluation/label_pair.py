"""The two label maps of a case: read, brought to the same label values, and proved to lie on one grid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import collapse_grey, read_image, read_label

LARGEST_CORNER_DISTANCE_VOXELS = 0.1
_LARGEST_TABLE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ScorePair:
    """The files of one case; `prediction` is None when there is no file."""

    case: str
    prediction: Path | None
    reference: Path
    group: str | None = None
    domain: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How label values are understood and what is measured.

    Attributes:
        classes: class name to the label values it consists of, in the dataset's values.
        ignore_value: reference voxels of this value count nowhere.
        other_values: values that may occur without being scored; any further value is an error, not background.
        nsd_tolerance: in mm, or px without physical spacing.
        reference_values: raw reference value to dataset value, for example {255: 1}; others stay as they are.
        reference_threshold: raw reference values above it are the (only) class; None reads integers.
    """

    classes: Mapping[str, tuple[int, ...]]
    ignore_value: int | None = None
    other_values: Collection[int] = ()
    nsd_tolerance: float = 2.0
    reference_values: Mapping[int, int] = field(default_factory=dict)
    reference_threshold: float | None = None

    def __post_init__(self) -> None:
        twice = len(set(self.classes.values())) < len(self.classes)
        if not self.classes or twice or not all(self.classes.values()):
            raise UsageError(f"classes {dict(self.classes)} need distinct label values", where="class list")
        if self.reference_threshold is not None and [len(v) for v in self.classes.values()] != [1]:
            what = f"a threshold gives one class, the predictions have {list(self.classes)}"
            raise UsageError(what, where="--threshold", fix="use --label-map for several classes")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelPair:
    """Label maps (*spatial) in the dataset's values, on one grid.

    Attributes:
        prediction: all background when there is no file.
        geometry: of the reference, or of the prediction when only that one has physical spacing.
    """

    prediction: np.ndarray
    reference: np.ndarray
    geometry: Geometry


def read_pair(pair: ScorePair, settings: ScoreSettings) -> LabelPair:
    """Read the label maps of a case.

    Raises:
        InputDataError: a file is unreadable, has undeclared values, or the two grids differ.
    """
    reference = _read_reference(pair.reference, settings)
    _refuse_undeclared(reference.array, settings, pair.reference)
    if pair.prediction is None:
        empty = np.zeros_like(reference.array[0])
        return LabelPair(prediction=empty, reference=reference.array[0], geometry=reference.geometry)
    prediction = read_label(pair.prediction)
    _refuse_undeclared(prediction.array, settings, pair.prediction)
    _refuse_other_grid(prediction.geometry, reference.geometry, pair)
    geometry = reference.geometry if reference.geometry.has_physical_spacing else prediction.geometry
    return LabelPair(prediction=prediction.array[0], reference=reference.array[0], geometry=geometry)


def _read_reference(path: Path, settings: ScoreSettings) -> Image:
    if settings.reference_threshold is not None:
        image = collapse_grey(read_image(path))
        if image.array.shape[0] != 1:
            what = f"a threshold needs a grey image, this one has {image.array.shape[0]} channels"
            raise InputDataError(what, where=str(path), fix="give the masks as grey images")
        (value,) = next(iter(settings.classes.values()))
        array = np.where(image.array > settings.reference_threshold, np.int32(value), np.int32(0))
        return Image(array=array, geometry=image.geometry)
    image = read_label(path)
    if not settings.reference_values:
        return image
    mapped: np.ndarray = image.array.astype(np.int32)
    for raw, value in settings.reference_values.items():
        mapped[image.array == raw] = value
    return Image(array=mapped, geometry=image.geometry)


def _refuse_undeclared(label: np.ndarray, settings: ScoreSettings, path: Path) -> None:
    declared = {0, *settings.other_values, *(value for values in settings.classes.values() for value in values)}
    if settings.ignore_value is not None:
        declared.add(settings.ignore_value)
    undeclared = sorted(_values_in(label) - declared)
    if undeclared:
        raise InputDataError(
            f"label values {undeclared[:10]} are not declared (declared: {sorted(declared)})",
            where=str(path),
            fix="map them with --label-map VALUE:NAME or --threshold, or correct the file",
        )


def _refuse_other_grid(prediction: Geometry, reference: Geometry, pair: ScorePair) -> None:
    where = f"case {pair.case}: {pair.prediction} and {pair.reference}"
    fix = "compare label maps of the same image, on its native grid"
    if prediction.shape != reference.shape:
        what = f"the prediction has {prediction.shape} voxels, the reference {reference.shape}"
        raise InputDataError(what, where=where, fix=fix)
    if not (prediction.has_physical_spacing and reference.has_physical_spacing):
        return
    distance_mm = largest_corner_distance_mm(prediction, reference)
    limit_mm = LARGEST_CORNER_DISTANCE_VOXELS * min(reference.spacing_mm)
    if distance_mm > limit_mm:
        what = f"the grids of prediction and reference are {distance_mm:.3g} mm apart (allowed: {limit_mm:.3g} mm)"
        raise InputDataError(what, where=where, fix=fix)


def _values_in(label: np.ndarray) -> set[int]:
    lowest, highest = int(label.min()), int(label.max())
    if highest - lowest >= _LARGEST_TABLE:
        return set(np.unique(label).tolist())
    # Marking is some ten times as fast as the sorting of np.unique.
    is_present: np.ndarray = np.zeros(highest - lowest + 1, dtype=bool)
    is_present[label.astype(np.int64) - lowest if lowest else label] = True
    return {int(index) + lowest for index in np.flatnonzero(is_present)}
