"""Overlap of two segmentations: voxel counts, Dice, IoU, precision and recall.

One joint histogram of two label maps answers for every class and region at once.
Two empty masks have no overlap to speak of: every ratio is NaN ("undefined"). When one mask is empty, every ratio is 0,
also the precision of an empty prediction, so that finding nothing never improves a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK_VOXELS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Voxel counts of a predicted against a reference mask, and what follows from them.

    Attributes:
        tp: voxels in both masks.
        fp: voxels in the prediction alone.
        fn: voxels in the reference alone.
        tn: voxels in neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn, tn=self.tn + other.tn)

    @property
    def n_pred(self) -> int:
        """Voxels of the predicted mask."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        """Voxels of the reference mask."""
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return self._ratio(2 * self.tp, self.n_pred + self.n_ref)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), the Jaccard index."""
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self._ratio(self.tp, self.n_pred)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), the sensitivity."""
        return self._ratio(self.tp, self.n_ref)

    def _ratio(self, part: int, whole: int) -> float:
        if self.n_pred + self.n_ref == 0:
            return math.nan
        return part / whole if whole else 0.0


def joint_histogram(prediction: np.ndarray, reference: np.ndarray, n_labels: int) -> np.ndarray:
    """Count how often each pair of labels meets.

    Args:
        prediction: label indices 0..n_labels - 1, any shape.
        reference: label indices of the same shape.
        n_labels: number of label indices, background included.

    Returns:
        int64 (n_labels, n_labels): rows are the reference's labels, columns the prediction's.
    """
    assert prediction.shape == reference.shape, (prediction.shape, reference.shape)
    flat_prediction, flat_reference = prediction.reshape(-1), reference.reshape(-1)
    counts: np.ndarray = np.zeros(n_labels * n_labels, dtype=np.int64)
    # np.bincount widens to int64: chunks keep that copy small.
    for start in range(0, flat_prediction.size, _CHUNK_VOXELS):
        chunk = slice(start, start + _CHUNK_VOXELS)
        pairs = flat_reference[chunk].astype(np.int64) * n_labels + flat_prediction[chunk]
        counts += np.bincount(pairs, minlength=counts.size)
    return counts.reshape(n_labels, n_labels)


def overlap_of_labels(histogram: np.ndarray, members: Sequence[int]) -> Overlap:
    """Return the overlap of one class, or of a region made of several labels.

    Args:
        histogram: result of `joint_histogram`.
        members: the label indices that the class consists of.
    """
    chosen: np.ndarray = np.zeros(len(histogram), dtype=bool)
    chosen[list(members)] = True
    tp = int(histogram[np.ix_(chosen, chosen)].sum())
    fp = int(histogram[:, chosen].sum()) - tp
    fn = int(histogram[chosen].sum()) - tp
    return Overlap(tp=tp, fp=fp, fn=fn, tn=int(histogram.sum()) - tp - fp - fn)


def overlap_of_masks(prediction: np.ndarray, reference: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
    """Return the overlap of two boolean masks.

    Args:
        prediction: bool, any shape.
        reference: bool of the same shape.
        ignore: bool of the same shape; voxels that count nowhere, or None.
    """
    assert prediction.shape == reference.shape, (prediction.shape, reference.shape)
    n_voxels = prediction.size
    if ignore is not None:
        prediction, reference = prediction & ~ignore, reference & ~ignore
        n_voxels -= int(np.count_nonzero(ignore))
    tp = int(np.count_nonzero(prediction & reference))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    return Overlap(tp=tp, fp=fp, fn=fn, tn=n_voxels - tp - fp - fn)
