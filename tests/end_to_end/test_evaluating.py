"""`msd evaluate` on references of any layout."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from msd_shell import done, labels_of, msd, write_volume

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture
def predictions(lab, tmp_path):
    """A fresh folder with the predictions of both test cases."""
    done("predict", lab.run, lab.images, tmp_path / "out", "--workers", 0)
    return tmp_path / "out"


def evaluate(lab, predictions, reference, *words):
    return msd("evaluate", predictions, reference, "--workspace", lab.workspace, "--workers", 0, "--json", *words)


def dice_of(found, truth, value):
    return 2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())


def test_a_folder_of_labels_and_the_dataset_give_the_same_scores(lab, predictions):
    dataset = evaluate(lab, predictions, 1).json
    folder = evaluate(lab, predictions, lab.dataset / "labelsTs").json
    assert [case["metrics"] for case in folder["metric_per_case"]] == [
        case["metrics"] for case in dataset["metric_per_case"]
    ]
    truth, found = labels_of(lab.dataset / "labelsTs"), labels_of(predictions)
    expected = np.mean([[dice_of(found[case], truth[case], value) for value in (1, 2)] for case in truth])
    assert dataset["foreground_mean"]["Dice"] == pytest.approx(expected)


def test_a_tree_of_masks_is_matched_by_glob_suffix_and_values(lab, predictions, tmp_path):
    for case, label in labels_of(lab.dataset / "labelsTs").items():
        image = SimpleITK.ReadImage(str(lab.dataset / "labelsTs" / f"{case}.nii.gz"))
        place = {"direction": image.GetDirection(), "origin": image.GetOrigin()}
        recoded = np.array([0, 100, 255], np.uint8)[label]
        write_volume(tmp_path / "tree" / case / f"{case}_seg.nii.gz", recoded, image.GetSpacing(), **place)
    words = ["--labels", "*/*_seg.nii.gz", "--label-suffix", "_seg"]
    mapped = ["--label-map", "100:organ", "--label-map", "255:nodule"]
    tree = evaluate(lab, predictions, tmp_path / "tree", *words, *mapped)
    assert tree.json["foreground_mean"] == evaluate(lab, predictions, 1).json["foreground_mean"]
    unknown = evaluate(lab, predictions, tmp_path / "tree", *words, "--label-map", "100:liver")
    assert unknown.code == 2
    assert "organ" in unknown.stderr
    # Without the map the values are undeclared, which is an error and never background.
    assert evaluate(lab, predictions, tmp_path / "tree", *words).code == 3


def test_a_tree_with_training_cases_needs_only_the_test_cases_predicted(lab, predictions, tmp_path):
    for part in ("labelsTr", "labelsTs"):
        shutil.copytree(lab.dataset / part, tmp_path / "tree" / part)
    tree = evaluate(lab, predictions, tmp_path / "tree")
    assert tree.json["foreground_mean"] == evaluate(lab, predictions, 1).json["foreground_mean"]
    assert "training cases" in tree.stderr
    sorted(predictions.glob("*.nii.gz"))[0].unlink()
    assert evaluate(lab, predictions, tmp_path / "tree").json["aggregations"]["overall"]["missing_predictions"] == 1


def test_scores_of_training_cases_are_said_to_be_no_test(lab, tmp_path, predictions):
    done("predict", lab.run, lab.dataset / "imagesTr", tmp_path / "seen", "--workers", 0)
    trained_on = json.loads((lab.run / "run.json").read_text())["train_cases"]
    (note,) = evaluate(lab, tmp_path / "seen", 1).json["notes"]
    assert f"trained on: {len(trained_on)} of 6;" in note
    assert evaluate(lab, predictions, 1).json["notes"] == []
    assert json.loads((lab.run / "validation" / "summary.json").read_text())["notes"] == []


def test_domains_of_the_predictions_dataset_are_kept_with_any_reference(lab, predictions, tmp_path):
    dataset = tmp_path / "Dataset001_Phantom"
    shutil.copytree(lab.dataset, dataset)
    content = json.loads((dataset / "dataset.json").read_text())
    content["domains"] = {case: f"scanner {case}" for case in labels_of(predictions)}
    (dataset / "dataset.json").write_text(json.dumps(content))
    info = json.loads((predictions / "prediction.json").read_text())
    (predictions / "prediction.json").write_text(json.dumps({**info, "dataset_path": str(dataset)}))
    domains = evaluate(lab, predictions, lab.dataset / "labelsTs").json["aggregations"]["domains"]
    assert sorted(domains) == sorted(content["domains"].values())


def test_a_second_observer_of_the_dataset_can_be_the_reference(lab, predictions, tmp_path):
    dataset = tmp_path / "Dataset001_Phantom"
    shutil.copytree(lab.dataset, dataset)
    shutil.copytree(predictions, tmp_path / "as_labels")
    (dataset / "labelsTs_second").mkdir()
    for path in predictions.glob("*.nii.gz"):
        shutil.copy(path, dataset / "labelsTs_second" / path.name)
    scores = evaluate(lab, predictions, dataset, "--observer", "second").json
    assert scores["foreground_mean"]["Dice"] == pytest.approx(1)
    assert evaluate(lab, predictions, dataset, "--observer", "third").code in (2, 3)


def test_a_missing_prediction_counts_as_zero_unless_it_is_allowed(lab, predictions):
    whole = evaluate(lab, predictions, 1).json
    gone = sorted(predictions.glob("*.nii.gz"))[0]
    gone.unlink()
    kept = [case for case in whole["metric_per_case"] if case["case"] != gone.name.removesuffix(".nii.gz")]
    mean_of_kept = np.mean([kept[0]["metrics"][label]["Dice"] for label in ("1", "2")])
    with_zero = evaluate(lab, predictions, 1).json
    assert with_zero["foreground_mean"]["Dice"] == pytest.approx(mean_of_kept / 2)
    assert with_zero["aggregations"]["overall"]["missing_predictions"] == 1
    without = evaluate(lab, predictions, 1, "--allow-missing").json
    assert without["foreground_mean"]["Dice"] == pytest.approx(mean_of_kept)
    assert any("--allow-missing" in note for note in without["notes"])


def test_only_listed_cases_are_scored(lab, predictions, tmp_path):
    case = sorted(labels_of(predictions))[1]
    (tmp_path / "cases.txt").write_text(f"{case}\n")
    assert [
        c["case"] for c in evaluate(lab, predictions, 1, "--cases", tmp_path / "cases.txt").json["metric_per_case"]
    ] == [case]
    (tmp_path / "cases.txt").write_text("nobody\n")
    outcome = evaluate(lab, predictions, 1, "--cases", tmp_path / "cases.txt")
    assert outcome.code == 3
    assert "nobody" in outcome.stderr
    assert evaluate(lab, predictions, 1, "--cases", tmp_path / "no_file.txt").code == 2


def test_a_score_below_the_demand_is_code_8_after_the_scores_are_written(lab, predictions):
    score = evaluate(lab, predictions, 1).json["foreground_mean"]["Dice"]
    (predictions / "summary.json").unlink()
    outcome = evaluate(lab, predictions, 1, "--fail-below", f"dice={score + 0.01}")
    assert outcome.code == 8
    assert outcome.json["foreground_mean"]["Dice"] == score
    assert (predictions / "summary.json").is_file()
    assert evaluate(lab, predictions, 1, "--fail-below", f"dice={score - 0.01}").code == 0


def test_a_prediction_on_another_grid_is_a_named_failure(lab, predictions):
    case = sorted(labels_of(predictions))[0]
    write_volume(predictions / f"{case}.nii.gz", np.zeros((3, 3, 3), np.uint8))
    outcome = evaluate(lab, predictions, 1)
    assert outcome.code == 5
    assert case in outcome.stderr
    assert list(outcome.json["failures"]) == [case]


def test_a_folder_that_msd_did_not_write_is_refused_with_words(lab, tmp_path):
    (tmp_path / "empty").mkdir()
    assert evaluate(lab, tmp_path / "empty", 1).code == 3
    assert evaluate(lab, tmp_path / "nowhere", 1).code in (2, 3)


def test_scores_on_the_grid_of_the_plan_differ_from_native_ones_and_say_so(lab, predictions):
    native = evaluate(lab, predictions, 1).json
    planned = evaluate(lab, predictions, 1, "--grid", "plan")
    assert planned.code == 0
    assert planned.json["foreground_mean"]["Dice"] == pytest.approx(native["foreground_mean"]["Dice"], abs=0.2)
    assert any("plan" in note for note in planned.json["notes"])
