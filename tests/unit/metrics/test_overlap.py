import math

import numpy as np
import pytest
import SimpleITK
from medpy.metric import binary

from medsegdiff_cli.metrics.overlap import Overlap, joint_histogram, overlap_of_labels, overlap_of_masks


def random_masks(seed: int, n_dims: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(4, 12, n_dims))
    density = random.uniform(0.1, 0.9)
    return random.random(shape) < density, random.random(shape) < density


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_ratios_equal_simpleitk_and_medpy(seed: int, n_dims: int) -> None:
    prediction, reference = random_masks(seed, n_dims)
    overlap = overlap_of_masks(prediction, reference)
    oracle = SimpleITK.LabelOverlapMeasuresImageFilter()
    oracle.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, prediction)))
    assert overlap.dice == pytest.approx(oracle.GetDiceCoefficient(), abs=1e-12)
    assert overlap.iou == pytest.approx(oracle.GetJaccardCoefficient(), abs=1e-12)
    assert overlap.dice == pytest.approx(binary.dc(prediction, reference), abs=1e-12)
    assert overlap.iou == pytest.approx(binary.jc(prediction, reference), abs=1e-12)
    assert overlap.precision == pytest.approx(binary.precision(prediction, reference), abs=1e-12)
    assert overlap.recall == pytest.approx(binary.recall(prediction, reference), abs=1e-12)


def test_counts_are_those_seen_by_eye() -> None:
    prediction = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    reference = np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
    overlap = overlap_of_masks(prediction, reference)
    assert overlap == Overlap(tp=2, fp=1, fn=1, tn=2)
    assert (overlap.n_pred, overlap.n_ref) == (3, 3)
    assert overlap.dice == 2 * 2 / (3 + 3)


def test_one_histogram_answers_for_every_class_and_region() -> None:
    random = np.random.default_rng(0)
    prediction, reference = random.integers(0, 4, (2, 5, 6, 7))
    histogram = joint_histogram(prediction, reference, 4)
    assert histogram[2, 3] == np.count_nonzero((reference == 2) & (prediction == 3))
    for members in [(1,), (2,), (3,), (1, 3), (1, 2, 3)]:
        expected = overlap_of_masks(np.isin(prediction, members), np.isin(reference, members))
        assert overlap_of_labels(histogram, members) == expected


def test_histogram_of_many_chunks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, reference = np.random.default_rng(1).integers(0, 3, (2, 1000), dtype=np.uint8)
    whole = joint_histogram(prediction, reference, 3)
    monkeypatch.setattr("medsegdiff_cli.metrics.overlap._CHUNK_VOXELS", 64)
    np.testing.assert_array_equal(joint_histogram(prediction, reference, 3), whole)


def test_ignored_voxels_count_nowhere() -> None:
    prediction = np.array([1, 1, 0, 0, 1], dtype=bool)
    reference = np.array([1, 0, 1, 0, 1], dtype=bool)
    ignore = np.array([0, 1, 1, 0, 0], dtype=bool)
    assert overlap_of_masks(prediction, reference, ignore) == Overlap(tp=2, fp=0, fn=0, tn=1)


def test_two_empty_masks_are_undefined() -> None:
    empty = np.zeros((3, 3), dtype=bool)
    overlap = overlap_of_masks(empty, empty)
    assert all(math.isnan(value) for value in (overlap.dice, overlap.iou, overlap.precision, overlap.recall))


@pytest.mark.parametrize("is_missed", [True, False])
def test_one_empty_mask_scores_0_in_every_ratio(is_missed: bool) -> None:
    empty, full = np.zeros((3, 3), dtype=bool), np.ones((3, 3), dtype=bool)
    overlap = overlap_of_masks(empty, full) if is_missed else overlap_of_masks(full, empty)
    assert (overlap.dice, overlap.iou, overlap.precision, overlap.recall) == (0, 0, 0, 0)


def test_pooled_counts_are_sums() -> None:
    assert Overlap(tp=1, fp=2, fn=3, tn=4) + Overlap(tp=5, fp=6, fn=7, tn=8) == Overlap(tp=6, fp=8, fn=10, tn=12)
