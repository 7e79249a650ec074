"""Distances between the surfaces of two masks: computed once, asked many times.

The surface of a mask is its inner border: voxels with at least one of the 4 (2-D) or 6 (3-D) face neighbours in the
background; outside the image is background. Two definitions of the 95th percentile are in use and differ by up to a
voxel or so, therefore both are here under their own names: `hd95_pooled` (MedPy) and `hd95_max` (MONAI).

Two empty masks have no distance: every value is NaN ("undefined"). When one mask is empty (the structure is missed, or
spurious), distances are the image's diagonal and NSD is 0, so that finding nothing never improves a mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

# Measured seconds per unit of work, only their ratio matters. The tree's work is log(points) for every surface voxel
# that is not shared (searched) and, cheaper, for all of them (building); the transform's is the joint bounding box.
_TREE_SEARCH_COST, _TREE_BUILD_COST, _TRANSFORM_COST = 1.0e-7, 0.2e-7, 0.6e-7
# scipy's transform takes some 60 bytes a voxel; beyond this the tree serves whatever it costs.
_LARGEST_TRANSFORM_VOXELS = 1 << 26
# A distance of 3 x 0.7 mm is within 2.1 mm, whatever the last binary digit says.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Nearest distances from each surface to the other.

    Attributes:
        prediction_to_reference_mm: one value per surface voxel of the prediction; empty when either mask is.
        reference_to_prediction_mm: one value per surface voxel of the reference; empty when either mask is.
        image_diagonal_mm: edge to edge through the whole image; stands for a distance that does not exist.
        missed: the reference has the structure, the prediction has not.
        spurious: the prediction has the structure, the reference has not.
    """

    prediction_to_reference_mm: np.ndarray
    reference_to_prediction_mm: np.ndarray
    image_diagonal_mm: float
    missed: bool
    spurious: bool

    @property
    def undefined(self) -> bool:
        """Neither mask has a voxel."""
        return not (self.missed or self.spurious or self.prediction_to_reference_mm.size)

    def hd(self) -> float:
        """Return the Hausdorff distance: the largest of all distances, in mm."""
        return self._distance(lambda to_reference, to_prediction: max(to_reference.max(), to_prediction.max()))

    def hd95_pooled(self) -> float:
        """Return the 95th percentile of both directions' distances in one heap, in mm (MedPy's hd95)."""
        return self._distance(lambda *directed: np.percentile(np.concatenate(directed), 95))

    def hd95_max(self) -> float:
        """Return the larger of the two directed 95th percentiles, in mm (MONAI's and the Decathlon's rule)."""
        return self._distance(lambda *directed: max(np.percentile(values, 95) for values in directed))

    def assd(self) -> float:
        """Return the average symmetric surface distance, in mm: the mean of both directions in one heap.

        Heimann et al. 2009 and MONAI; MedPy takes the mean of the two directed means instead.
        """
        return self._distance(lambda *directed: np.concatenate(directed).mean())

    def nsd(self, tolerance_mm: float) -> float:
        """Return the normalised surface Dice: the share of surface voxels within `tolerance_mm` of the other surface.

        Surface voxels count equally (MONAI), not by their area (surface-distance). Within 0..1.
        """
        if self.missed or self.spurious:
            return 0.0
        if self.undefined:
            return math.nan
        distances = np.concatenate((self.prediction_to_reference_mm, self.reference_to_prediction_mm))
        return float(np.count_nonzero(distances <= tolerance_mm * (1 + _ROUNDING)) / distances.size)

    def _distance(self, statistic: Callable[..., float]) -> float:
        if self.missed or self.spurious:
            return self.image_diagonal_mm
        if self.undefined:
            return math.nan
        return float(statistic(self.prediction_to_reference_mm, self.reference_to_prediction_mm))


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the distance between opposite outer corners of an image, in mm."""
    return math.dist([0.0] * len(shape), [size * edge for size, edge in zip(shape, spacing_mm, strict=True)])


def surface_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    whole_image_diagonal_mm: float | None = None,
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    Args:
        prediction: bool (*spatial), 2-D or 3-D.
        reference: bool of the same shape.
        spacing_mm: voxel edge per axis, in array order.
        whole_image_diagonal_mm: to be given when the masks are crops; by default the masks are the whole image.
    """
    assert prediction.shape == reference.shape, (prediction.shape, reference.shape)
    if whole_image_diagonal_mm is None:
        whole_image_diagonal_mm = image_diagonal_mm(prediction.shape, spacing_mm)
    box = _joint_bounding_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    is_predicted, is_referenced = bool(prediction.any()), bool(reference.any())
    to_reference = to_prediction = np.empty(0)
    if is_predicted and is_referenced:
        to_reference, to_prediction = _measure(_border(prediction), _border(reference), spacing_mm)
    return SurfaceDistances(
        prediction_to_reference_mm=to_reference,
        reference_to_prediction_mm=to_prediction,
        image_diagonal_mm=whole_image_diagonal_mm,
        missed=is_referenced and not is_predicted,
        spurious=is_predicted and not is_referenced,
    )


def _joint_bounding_box(prediction: np.ndarray, reference: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box with both masks (nothing of a border lies outside); an empty one when both are empty."""
    found = ndimage.find_objects((prediction | reference).view(np.uint8), max_label=1)[0]
    return found or (slice(0, 0),) * prediction.ndim


def _border(mask: np.ndarray) -> np.ndarray:
    """Return the mask's voxels that have a face neighbour outside of it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + mask.shape[axis])
            inner &= padded[tuple(window)]
    return mask & ~inner


def _measure(first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances first to second and second to first, in the array order of the border voxels."""
    n_points = int(np.count_nonzero(first) + np.count_nonzero(second))
    n_apart = int(np.count_nonzero(first ^ second))
    tree_cost = math.log2(n_points) * (_TREE_SEARCH_COST * n_apart + _TREE_BUILD_COST * n_points)
    if tree_cost <= 2 * _TRANSFORM_COST * first.size or first.size > _LARGEST_TRANSFORM_VOXELS:
        return _nearest_by_tree(first, second, spacing_mm), _nearest_by_tree(second, first, spacing_mm)
    return _nearest_by_transform(first, second, spacing_mm), _nearest_by_transform(second, first, spacing_mm)


def _nearest_by_tree(points: np.ndarray, targets: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    distances = np.zeros(np.count_nonzero(points))
    # Voxels on both borders are at distance 0: only the others need a search.
    is_apart = ~targets[points]
    if is_apart.any():
        tree = KDTree(np.argwhere(targets) * np.asarray(spacing_mm, dtype=float))
        distances[is_apart] = tree.query(np.argwhere(points & ~targets) * np.asarray(spacing_mm, dtype=float))[0]
    return distances


def _nearest_by_transform(points: np.ndarray, targets: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    return ndimage.distance_transform_edt(~targets, sampling=spacing_mm)[points]
