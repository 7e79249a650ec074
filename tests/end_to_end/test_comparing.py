"""`msd compare` from the shell: real scores, table, JSON, CSV, exit codes."""

import csv
import io

import numpy as np
import pytest
from msd_shell import done, msd, write_volume

from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, write_prediction_info

N = 8
INFO = PredictionInfo(
    dataset="Dataset001_Cubes",
    dataset_path="cubes",
    file_ending=".nii.gz",
    classes={"cube": (1,)},
    models=("run",),
    model_digests=("0" * 64,),
    method="supervised",
    config="3d",
    msd_version="0.1.0",
    command="msd predict",
    seed=0,
    train_cases=1,
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Eight cases with a cube each; `good` misses one slice of it, `poor` two to three, case 7 of `poor` is missing."""
    folder = tmp_path_factory.mktemp("compare")
    for case in range(N):
        label = np.zeros((10, 12, 12), np.uint8)
        label[2:8, 3:9, 3:9] = 1
        write_volume(folder / f"labels/c{case}.nii.gz", label)
        for name, lost in (("good", 1), ("poor", 2 + case % 2)):
            prediction = label.copy()
            prediction[8 - lost : 8] = 0
            if (name, case) != ("poor", 7):
                write_volume(folder / f"{name}/c{case}.nii.gz", prediction)
    for name in ("good", "poor"):
        write_prediction_info(folder / name, INFO)
        done("evaluate", folder / name, folder / "labels", "--allow-missing", "--workers", 0)
    return folder


def test_the_table_names_the_rule_and_the_case_without_a_partner(scored) -> None:
    outcome = done("compare", scored / "poor", scored / "good")
    assert "dice: good minus poor" in outcome.stdout
    assert "Wilcoxon signed-rank test, two-sided, alpha 0.05; Holm correction over 1 tested rows" in outcome.stdout
    assert "cases only in 'good', in no row: 1 (c7)" in outcome.stdout


def test_json_and_csv_hold_the_values_drawn_by_hand(scored, tmp_path) -> None:
    table = tmp_path / "rows.csv"
    outcome = done("compare", f"old={scored / 'poor'}", f"new={scored}/good/summary.json", "--csv", table, "--json")
    content = outcome.json
    (row,) = content["rows"]
    # A cube of 6 slices that lost k has Dice 2 (6 - k) / (12 - k).
    poor = [2 * (6 - k) / (12 - k) for k in (2, 3, 2, 3, 2, 3, 2)]
    assert content["schema_version"] == 1
    assert (row["n"], row["wins"], row["ties"], row["losses"]) == (7, 7, 0, 0)
    assert row["mean"] == pytest.approx(10 / 11)
    assert row["mean_baseline"] == pytest.approx(np.mean(poor))
    assert row["difference"] == pytest.approx(10 / 11 - np.mean(poor))
    assert content["unpaired"]["new"] == {"only_in_baseline": [], "only_in_scores": ["c7"]}
    assert "c7" in outcome.stderr
    (written,) = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
    assert float(written["difference"]) == row["difference"]
    assert (written["scores"], written["baseline"], written["correction"]) == ("new", "old", "holm")


def test_the_same_command_gives_the_same_bytes(scored) -> None:
    words = ("compare", scored / "poor", scored / "good", "--metric", "hd95_max", "--json")
    assert done(*words).stdout == done(*words).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metric", "dicce"], "did you mean 'dice'"),
        (["--test", "wilcoxen"], "did you mean 'wilcoxon'"),
        (["--correction", "holms"], "did you mean 'holm'"),
        (["--alpha", "5"], "--alpha"),
        (["--baseline", "god"], "did you mean 'good'"),
        (["--groups"], "no patients"),
    ],
)
def test_a_wrong_flag_is_exit_2_with_the_nearest_match(scored, words, told) -> None:
    outcome = msd("compare", scored / "poor", scored / "good", *words)
    assert outcome.code == 2
    assert told in outcome.stderr


def test_predictions_that_were_not_scored_are_exit_2(scored) -> None:
    outcome = msd("compare", scored / "good", scored / "labels", "--json")
    assert outcome.code == 2
    assert "msd evaluate" in outcome.json["error"]["fix"]
