"""All scores of one case from two label maps in memory."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

from medsegdiff_cli.artifacts.scores import ClassScore, VoxelCounts
from medsegdiff_cli.metrics.overlap import Overlap, joint_histogram, overlap_of_labels
from medsegdiff_cli.metrics.surface import SurfaceDistances, image_diagonal_mm, surface_distances

_MM3_PER_ML = 1000.0
_LARGEST_TABLE = 1 << 16

Box = tuple[slice, ...]


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    classes: Mapping[str, tuple[int, ...]],
    spacing_mm: Sequence[float],
    *,
    ignore_value: int | None = None,
    nsd_tolerance_mm: float,
    has_physical_spacing: bool = True,
) -> tuple[list[ClassScore], VoxelCounts]:
    """Score a predicted label map.

    Args:
        prediction: integers (*spatial), 2-D or 3-D; values of no class count as background.
        reference: integers of the same shape.
        classes: class name to the label values it consists of (several for a region; regions may overlap).
        spacing_mm: voxel edge per axis, in array order (1.0 each without physical spacing).
        ignore_value: voxels with this value in the reference are background in both masks and in no count.
        nsd_tolerance_mm: tolerance of the normalised surface Dice (in px without physical spacing).
        has_physical_spacing: False gives volumes in px instead of ml (3-D) or mm2 (2-D).

    Returns:
        One score per class, in the order of `classes`, and the counts of what belongs to no class.
    """
    values = sorted({value for members in classes.values() for value in members})
    predicted, referenced = _as_indices(prediction, values), _as_indices(reference, values)
    n_ignored = 0
    if ignore_value is not None:
        ignored = reference == ignore_value
        n_ignored = int(np.count_nonzero(ignored))
        predicted[ignored] = referenced[ignored] = 0
    histogram = joint_histogram(predicted, referenced, len(values) + 1)
    histogram[0, 0] -= n_ignored
    boxes = _joint_boxes(predicted, referenced, len(values))
    diagonal_mm = image_diagonal_mm(prediction.shape, spacing_mm)
    voxel_volume = _voxel_volume(spacing_mm, has_physical_spacing)
    scores = []
    for name, members in classes.items():
        indices = [values.index(value) + 1 for value in members]
        box = _hull([boxes[index - 1] for index in indices], prediction.ndim)
        in_prediction, in_reference = _mask_of(indices, predicted[box]), _mask_of(indices, referenced[box])
        distances = surface_distances(in_prediction, in_reference, spacing_mm, whole_image_diagonal_mm=diagonal_mm)
        overlap = overlap_of_labels(histogram, indices)
        scores.append(_as_score(name, overlap, distances, nsd_tolerance_mm, voxel_volume))
    nothing = overlap_of_labels(histogram, [0])
    return scores, VoxelCounts(tp=nothing.tp, fp=nothing.fp, fn=nothing.fn, tn=nothing.tn)


def volume_unit(n_dims: int, has_physical_spacing: bool) -> Literal["ml", "mm2", "px"]:
    """Return the unit of `ClassScore.volume_*`: ml in 3-D, mm2 in 2-D, px without physical spacing."""
    if not has_physical_spacing:
        return "px"
    return "ml" if n_dims == 3 else "mm2"


def _voxel_volume(spacing_mm: Sequence[float], has_physical_spacing: bool) -> float:
    unit = volume_unit(len(spacing_mm), has_physical_spacing)
    return {"px": 1.0, "mm2": math.prod(spacing_mm), "ml": math.prod(spacing_mm) / _MM3_PER_ML}[unit]


def _as_score(
    name: str, overlap: Overlap, distances: SurfaceDistances, nsd_tolerance_mm: float, voxel_volume: float
) -> ClassScore:
    return ClassScore(
        class_name=name,
        dice=_defined(overlap.dice),
        iou=_defined(overlap.iou),
        tp=overlap.tp,
        fp=overlap.fp,
        fn=overlap.fn,
        tn=overlap.tn,
        n_pred=overlap.n_pred,
        n_ref=overlap.n_ref,
        precision=_defined(overlap.precision),
        recall=_defined(overlap.recall),
        hd95_pooled=_defined(distances.hd95_pooled()),
        hd95_max=_defined(distances.hd95_max()),
        assd=_defined(distances.assd()),
        nsd=_defined(distances.nsd(nsd_tolerance_mm)),
        volume_prediction=overlap.n_pred * voxel_volume,
        volume_reference=overlap.n_ref * voxel_volume,
        missed=distances.missed,
        spurious=distances.spurious,
        undefined=distances.undefined,
    )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _as_indices(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Map values[i] to i + 1 and everything else to 0, as a new array of small integers."""
    dtype = np.uint8 if len(values) < 256 else np.uint16
    label = label.view(np.uint8) if label.dtype == bool else label
    if label.size and int(label.min()) >= 0 and int(label.max()) < _LARGEST_TABLE:
        table: np.ndarray = np.zeros(max(int(label.max()), values[-1], 0) + 1, dtype=dtype)
        for index, value in enumerate(values):
            if value >= 0:
                table[value] = index + 1
        return table[label]
    indices: np.ndarray = np.zeros(label.shape, dtype=dtype)
    for index, value in enumerate(values):
        indices[label == value] = index + 1
    return indices


def _mask_of(indices: Sequence[int], label: np.ndarray) -> np.ndarray:
    return label == indices[0] if len(indices) == 1 else np.isin(label, indices)


def _joint_boxes(predicted: np.ndarray, referenced: np.ndarray, n_labels: int) -> list[Box | None]:
    """Return, per label index 1..n_labels, the smallest box around it in both maps; None where it is in neither."""
    pairs = zip(
        ndimage.find_objects(predicted, max_label=n_labels),
        ndimage.find_objects(referenced, max_label=n_labels),
        strict=True,
    )
    return [_hull(pair, predicted.ndim) if any(pair) else None for pair in pairs]


def _hull(boxes: Sequence[Box | None], n_dims: int) -> Box:
    """Return the smallest box around all boxes; an empty one when there is none."""
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * n_dims
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))
