from typing import Any

import numpy as np
import pytest
from medpy.metric import binary

from medsegdiff_cli.artifacts.scores import ClassScore
from medsegdiff_cli.evaluation.case_scores import score_case, volume_unit

SPACING_MM = (2.0, 1.0, 0.5)
CLASSES = {"liver": (1,), "vessel": (420,), "both": (1, 420)}


def class_scores(*arrays: Any, **options: Any) -> list[ClassScore]:
    """Return the scores of the classes; those of the background are tested with the summary."""
    return score_case(*arrays, **options)[0]


def label_maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two maps of 0, 1 and 420: a box each, the prediction's moved by a voxel."""
    reference = np.zeros((10, 16, 14), dtype=np.int32)
    reference[2:7, 3:10, 3:9] = 1
    reference[4:9, 8:14, 5:12] = 420
    flipped = np.random.default_rng(seed).random(reference.shape) < 0.02
    return np.where(flipped, 420, np.roll(reference, 1, axis=1)).astype(np.int16), reference


def test_every_class_and_region_equals_medpy_on_its_mask() -> None:
    prediction, reference = label_maps()
    scores = class_scores(prediction, reference, CLASSES, SPACING_MM, nsd_tolerance_mm=1.0)
    assert [score.class_name for score in scores] == ["liver", "vessel", "both"]
    for score in scores:
        masks = [np.isin(label, CLASSES[score.class_name]) for label in (prediction, reference)]
        assert score.dice == pytest.approx(binary.dc(*masks))
        assert score.precision == pytest.approx(binary.precision(*masks))
        assert score.recall == pytest.approx(binary.recall(*masks))
        assert score.hd95_pooled == pytest.approx(binary.hd95(*masks, SPACING_MM))
        assert (score.n_pred, score.n_ref) == tuple(np.count_nonzero(mask) for mask in masks)
        assert score.tp + score.fp + score.fn + score.tn == reference.size


def test_volumes_are_in_millilitres_square_millimetres_or_pixels() -> None:
    prediction, reference = label_maps()
    n_voxels = 5 * 7 * 6 - 3 * 2 * 4  # the liver's box without what the vessel overwrote
    liver = class_scores(prediction, reference, {"liver": (1,)}, SPACING_MM, nsd_tolerance_mm=1)[0]
    assert liver.volume_reference == pytest.approx(n_voxels * (2.0 * 1.0 * 0.5) / 1000)
    slice_scores = class_scores(prediction[5], reference[5], {"liver": (1,)}, (1.0, 0.5), nsd_tolerance_mm=1)
    assert slice_scores[0].volume_reference == np.count_nonzero(reference[5] == 1) * 0.5
    options = {"nsd_tolerance_mm": 1, "has_physical_spacing": False}
    photo = class_scores(prediction[5], reference[5], {"liver": (1,)}, (1.0, 1.0), **options)[0]
    assert photo.volume_reference == np.count_nonzero(reference[5] == 1)
    assert [volume_unit(3, True), volume_unit(2, True), volume_unit(2, False)] == ["ml", "mm2", "px"]


def test_ignored_voxels_are_in_no_count_and_on_no_surface() -> None:
    prediction, reference = label_maps()
    ignored = reference.copy()
    ignored[:, 10:] = 7
    scores = class_scores(prediction, ignored, CLASSES, SPACING_MM, ignore_value=7, nsd_tolerance_mm=1.0)
    cropped = class_scores(prediction[:, :10], reference[:, :10], CLASSES, SPACING_MM, nsd_tolerance_mm=1.0)
    assert scores == cropped


def test_a_class_in_neither_map_is_undefined_and_a_lost_one_gets_the_worst() -> None:
    prediction, reference = np.zeros((2, 3, 4), dtype=np.uint8)
    reference[0, 0], prediction[2, 2] = 1, 2
    classes = {"missed": (1,), "spurious": (2,), "absent": (3,)}
    missed, spurious, absent = class_scores(prediction, reference, classes, (1.0, 1.0), nsd_tolerance_mm=1)
    assert (missed.missed, missed.spurious, missed.undefined) == (True, False, False)
    assert (spurious.missed, spurious.spurious, spurious.undefined) == (False, True, False)
    for score in (missed, spurious):
        assert (score.dice, score.iou, score.precision, score.recall, score.nsd) == (0, 0, 0, 0, 0)
        assert (score.hd95_pooled, score.hd95_max, score.assd) == (5.0, 5.0, 5.0)  # 3-4-5 triangle
    assert (absent.missed, absent.spurious, absent.undefined) == (False, False, True)
    assert (absent.dice, absent.hd95_pooled, absent.nsd, absent.volume_reference) == (None, None, None, 0)


@pytest.mark.parametrize("values", [(1, 2), (100_000, 200_000), (-5, 3), (65_535, 65_536)])
def test_any_integer_label_values_score_the_same(values: tuple[int, int]) -> None:
    plain_prediction, plain_reference = (np.digitize(label, [1, 420]) for label in label_maps())
    named = np.array((0, *values))
    expected = class_scores(plain_prediction, plain_reference, {"a": (1,), "b": (2,)}, SPACING_MM, nsd_tolerance_mm=1)
    classes = {"a": values[:1], "b": values[1:]}
    actual = class_scores(named[plain_prediction], named[plain_reference], classes, SPACING_MM, nsd_tolerance_mm=1)
    assert actual == expected


def test_more_than_255_classes_are_scored() -> None:
    reference = np.arange(300).reshape(15, 20)
    classes = {f"c{value}": (value,) for value in range(1, 300)}
    scores = class_scores(reference, reference, classes, (1.0, 1.0), nsd_tolerance_mm=1)
    assert {score.dice for score in scores} == {1.0}


def test_a_reference_scored_against_itself_is_perfect() -> None:
    _, reference = label_maps()
    for score in class_scores(reference, reference, CLASSES, SPACING_MM, nsd_tolerance_mm=0):
        assert (score.dice, score.iou, score.precision, score.recall, score.nsd) == (1, 1, 1, 1, 1)
        assert (score.hd95_pooled, score.hd95_max, score.assd) == (0, 0, 0)
