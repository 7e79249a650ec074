from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.artifacts.scores import Scores
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.evaluation.evaluate import evaluate_folder
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings

SETTINGS = ScoreSettings(classes={"a": (1,), "b": (2,)}, nsd_tolerance=1.0)


def write_label(
    path: Path, array: np.ndarray, spacing_mm: tuple[float, ...] = (3.0, 1.0, 0.5), shift: float = 0
) -> Path:
    image = sitk.GetImageFromArray(array)
    if path.suffix != ".png":
        image.SetSpacing(spacing_mm[::-1])
        image.SetOrigin([shift] * array.ndim)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def phantom(seed: int, shape: tuple[int, ...] = (6, 8, 10)) -> np.ndarray:
    label = np.zeros(shape, dtype=np.uint8)
    label[..., 2:5, 2:6] = 1
    label[..., 5:7, 3:8] = 2
    label[np.random.default_rng(seed).random(shape) < 0.05] = 1
    return label


def pairs_in(folder: Path, n_cases: int = 3) -> list[ScorePair]:
    return [
        ScorePair(
            case=f"c{i}",
            prediction=write_label(folder / "predictions" / f"c{i}.nii.gz", phantom(2 * i)),
            reference=write_label(folder / "labels" / f"c{i}.nii.gz", phantom(2 * i + 1)),
        )
        for i in range(n_cases)
    ]


def test_files_score_as_their_arrays(tmp_path: Path) -> None:
    scores = evaluate_folder(pairs_in(tmp_path), SETTINGS, provenance={"command": "msd evaluate"})
    assert [case.case for case in scores.cases] == ["c0", "c1", "c2"]
    prediction, reference = phantom(0) == 1, phantom(1) == 1
    first = scores.cases[0].classes[0]
    assert first.dice == 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum())
    assert first.volume_reference == pytest.approx(reference.sum() * 3.0 * 1.0 * 0.5 / 1000)
    assert (scores.distance_units, scores.volume_units) == (("mm",), ("ml",))
    assert scores.cases[0].image_diagonal == pytest.approx(np.linalg.norm([6 * 3.0, 8 * 1.0, 10 * 0.5]))


def test_processes_give_the_same_scores_in_the_same_order(tmp_path: Path) -> None:
    pairs = pairs_in(tmp_path)
    pairs[1] = replace(pairs[1], reference=tmp_path / "nothing.nii.gz")
    seen: list[str] = []
    assert evaluate_folder(pairs, SETTINGS, workers=2, on_case=seen.append) == evaluate_folder(pairs, SETTINGS)
    assert seen == ["c0", "c1", "c2"]


def test_a_missing_prediction_gets_the_worst_scores_in_every_class(tmp_path: Path) -> None:
    pairs = pairs_in(tmp_path)
    only_a = np.where(phantom(0) == 1, np.uint8(1), np.uint8(0))
    pairs[1] = replace(pairs[1], prediction=None, reference=write_label(tmp_path / "labels/c1.nii.gz", only_a))
    scores = evaluate_folder(pairs, SETTINGS)
    lost = scores.cases[1]
    assert (lost.missing_prediction, lost.prediction_file) == (True, None)
    for score in lost.classes:
        assert (score.dice, score.iou, score.precision, score.recall, score.nsd) == (0, 0, 0, 0, 0)
        assert score.hd95_pooled == score.hd95_max == score.assd == lost.image_diagonal
    assert [score.missed for score in lost.classes] == [True, False]
    assert scores.overall.missing_predictions == 1
    assert scores.overall.per_class["b"]["dice"].n == 3


def test_missing_predictions_can_be_left_out_and_that_is_said(tmp_path: Path) -> None:
    pairs = pairs_in(tmp_path)
    pairs[1] = replace(pairs[1], prediction=None)
    scores = evaluate_folder(pairs, SETTINGS, allow_missing=True)
    assert [case.case for case in scores.cases] == ["c0", "c2"]
    assert "no prediction (--allow-missing): 1 of 3" in scores.notes[0]


def bad_files(folder: Path) -> dict[str, Path]:
    truncated = write_label(folder / "truncated.nii.gz", phantom(0))
    truncated.write_bytes(truncated.read_bytes()[:-20])
    return {
        "voxels": write_label(folder / "shape.nii.gz", phantom(0)[:, :, 1:]),
        "apart": write_label(folder / "moved.nii.gz", phantom(0), shift=0.06),
        "[9] are not declared": write_label(folder / "nine.nii.gz", np.where(phantom(0) == 2, 9, 0).astype(np.uint8)),
        "not found": folder / "nowhere.nii.gz",
        "truncated.nii.gz": truncated,
    }


def test_bad_cases_are_named_and_the_others_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = pairs_in(tmp_path, 2)
    bad = bad_files(tmp_path)
    pairs = [good[0], *(replace(good[0], case=reason, prediction=path) for reason, path in bad.items()), good[1]]
    scores = evaluate_folder(pairs, SETTINGS)
    assert [case.case for case in scores.cases] == ["c0", "c1"]
    assert list(scores.failures) == list(bad)
    for reason, message in scores.failures.items():
        assert reason in message


def test_a_shift_below_a_tenth_of_a_voxel_is_allowed(tmp_path: Path) -> None:
    pair = pairs_in(tmp_path, 1)[0]
    # 0.02 mm along each of three axes are 0.035 mm; a tenth of the smallest edge is 0.05 mm.
    moved = write_label(tmp_path / "moved.nii.gz", phantom(0), shift=0.02)
    assert evaluate_folder([replace(pair, prediction=moved)], SETTINGS).failures == {}


def test_no_scored_case_at_all_is_an_input_error(tmp_path: Path) -> None:
    pair = replace(pairs_in(tmp_path, 1)[0], prediction=tmp_path / "nowhere.nii.gz")
    with pytest.raises(InputDataError, match="none of 1 cases"):
        evaluate_folder([pair], SETTINGS)


def test_a_case_given_twice_is_refused(tmp_path: Path) -> None:
    pair = pairs_in(tmp_path, 1)[0]
    with pytest.raises(InputDataError, match=r"\['c0'\] occur more than once"):
        evaluate_folder([pair, pair], SETTINGS)


def photo_scores(folder: Path, reference: np.ndarray, settings: ScoreSettings) -> Scores:
    """Score a left half of ones against a raw mask, both PNG."""
    prediction = np.zeros((4, 6), dtype=np.uint8)
    prediction[:, :3] = 1
    pair = ScorePair(
        case="p",
        prediction=write_label(folder / "p.png", prediction),
        reference=write_label(folder / "raw.png", reference),
    )
    return evaluate_folder([pair], settings)


def test_raw_reference_values_are_mapped(tmp_path: Path) -> None:
    raw = np.zeros((4, 6), dtype=np.uint8)
    raw[:, :3] = 255
    settings = ScoreSettings(classes={"lung": (1,)}, reference_values={255: 1})
    scores = photo_scores(tmp_path, raw, settings)
    assert scores.cases[0].classes[0].dice == 1
    assert (scores.distance_units, scores.volume_units) == (("px",), ("px",))


def test_unmapped_raw_values_are_not_taken_for_background(tmp_path: Path) -> None:
    raw = np.full((4, 6), 255, dtype=np.uint8)
    with pytest.raises(InputDataError, match=r"\[255\] are not declared"):
        photo_scores(tmp_path, raw, ScoreSettings(classes={"lung": (1,)}))


def test_a_threshold_makes_a_class_of_greys(tmp_path: Path) -> None:
    raw = np.tile(np.array([255, 200, 128, 127, 3, 0], dtype=np.uint8), (4, 1))
    scores = photo_scores(tmp_path, raw, ScoreSettings(classes={"lung": (1,)}, reference_threshold=127))
    assert scores.cases[0].classes[0].dice == 1


def test_a_threshold_for_several_classes_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="a threshold gives one class"):
        replace(SETTINGS, reference_threshold=127)


def test_two_classes_of_the_same_values_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="distinct"):
        ScoreSettings(classes={"a": (1,), "b": (1,)})


def test_values_that_may_occur_unscored_are_background(tmp_path: Path) -> None:
    settings = ScoreSettings(classes={"a": (1,)}, other_values=(2,))
    scores = evaluate_folder(pairs_in(tmp_path, 1), settings)
    assert [score.class_name for score in scores.cases[0].classes] == ["a"]


def test_ignored_voxels_of_the_file_are_in_no_count(tmp_path: Path) -> None:
    pair = pairs_in(tmp_path, 1)[0]
    label = phantom(1)
    label[:3] = 7
    ignored = replace(pair, reference=write_label(tmp_path / "ignored.nii.gz", label))
    score = evaluate_folder([ignored], replace(SETTINGS, ignore_value=7)).cases[0].classes[0]
    assert score.tp + score.fp + score.fn + score.tn == 3 * 8 * 10
