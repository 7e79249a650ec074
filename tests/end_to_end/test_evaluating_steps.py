"""`msd evaluate --per-step --per-member` on folders of predictions made by hand, with numbers worked out by hand.

A structure is a line of voxels along x, 2 mm apart. Of a reference of 10 voxels a prediction lacks the last k, so that
Dice is 2 (10 - k) / (20 - k). Every voxel is border; the distances of the reference's voxels to the prediction are
10 - k times 0, then 1 to k voxels, and the 95th percentile of ten numbers lies 0.55 of the way from the ninth to the
tenth: k - 0.45 voxels for k of 1 or more.
"""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from msd_shell import done, msd, write_volume

from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, write_prediction_info
from medsegdiff_cli.workflows.evaluate import label_maps_by_case

SHAPE, SPACING_XYZ = (2, 3, 20), (2.0, 1.0, 1.0)
DIAGONAL = math.hypot(40, 3, 2)
STEPS = (1000, 500, 0)
EMPTY, MISSED = -1, 10
# Voxels that each case lacks at each step. In `absent` nothing is there, nor found; `found` is missed at first.
LACKING = {"better": (3, 2, 1), "worse": (0, 0, 1), "absent": (EMPTY,) * 3, "found": (MISSED, 0, 0)}
# The same for three draws at the end.
DRAWS = {"better": (1, 2, 3), "worse": (0, 1, 0), "absent": (EMPTY,) * 3, "found": (0, 0, MISSED)}


def dice(lacking):
    return 2 * (10 - lacking) / (20 - lacking)


def hd95(lacking):
    return DIAGONAL if lacking == MISSED else 2 * max(0, lacking - 0.45)


def line(lacking, value=1):
    label = np.zeros(SHAPE, np.uint8)
    if lacking != EMPTY:
        label[0, 1, : 10 - lacking] = value
    return label


def write(path, label):
    write_volume(path, label, SPACING_XYZ)


def make_folder(folder, timesteps=STEPS, **facts):
    """Write references and final predictions, and say what the folder is."""
    for case, lacking in LACKING.items():
        write(folder / "labels" / f"{case}.nii.gz", line(EMPTY if case == "absent" else 0))
        write(folder / "out" / f"{case}.nii.gz", line(lacking[-1]))
    content = {
        "dataset": "Dataset001_Lines",
        "dataset_path": str(folder / "nowhere"),
        "file_ending": ".nii.gz",
        "classes": {"line": (1,)},
        "models": ("recycling__3d/fold_0",),
        "model_digests": ("0" * 64,),
        "method": "recycling",
        "config": "3d",
        "msd_version": "0",
        "command": "msd predict",
        "seed": 0,
        "train_cases": 1,
        "visited_timesteps": timesteps,
    }
    write_prediction_info(folder / "out", PredictionInfo(**{**content, **facts}))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Predictions with steps and with draws at the end."""
    make_folder(tmp_path)
    for case, lacking in LACKING.items():
        for timestep, k in zip(STEPS, lacking, strict=True):
            write(tmp_path / "out" / "steps" / f"{case}_t{timestep:04d}.nii.gz", line(k))
        for number, k in enumerate(DRAWS[case]):
            write(tmp_path / "out" / "members" / f"{case}_{number:03d}.nii.gz", line(k))
    return tmp_path


def evaluate(folder, *words):
    return msd("evaluate", folder / "out", folder / "labels", "--workers", 0, "--json", *words)


def only(points, **wanted):
    (point,) = [p for p in points if all(p[key] == value for key, value in wanted.items())]
    return point


def test_each_step_is_scored_over_the_cases_that_have_a_value(folder):
    found = evaluate(folder, "--per-step")
    assert found.code == 0
    assert found.json == json.loads((folder / "out" / "steps.json").read_text())
    assert found.json["schema_version"] == 1
    assert found.json["timesteps"] == list(STEPS)
    assert found.json["spreads"] == []
    cases = [LACKING[case] for case in ("better", "worse", "found")]
    for step, timestep in enumerate(STEPS, 1):
        for metric, of in (("dice", dice), ("hd95_max", hd95)):
            values = [of(lacking[step - 1]) for lacking in cases]
            point = only(found.json["curves"], step=step, metric=metric)
            assert point["timestep"] == timestep
            assert point["class_name"] is None
            assert point["values"]["mean"] == pytest.approx(np.mean(values))
            assert point["values"]["std"] == pytest.approx(np.std(values, ddof=1))
            assert (point["values"]["n"], point["values"]["undefined"]) == (3, 1)
            assert (point["missed"], point["spurious"]) == (1 if step == 1 else 0, 0)


def test_the_last_step_is_compared_with_the_first_case_by_case(folder):
    changes = evaluate(folder, "--per-step").json["changes"]
    dices = only(changes, metric="dice")
    expected = [18 / 19 - 14 / 17, 18 / 19 - 1, 1 - 0]
    assert dices["values"]["mean"] == pytest.approx(np.mean(expected))
    assert (dices["first_timestep"], dices["last_timestep"], dices["better"]) == (1000, 0, "higher")
    assert (dices["improved"], dices["unchanged"], dices["worsened"]) == (2, 0, 1)
    assert dices["improved_share"] == pytest.approx(2 / 3)
    assert (dices["values"]["n"], dices["values"]["undefined"]) == (3, 1)
    distances = only(changes, metric="hd95_max")
    assert distances["values"]["mean"] == pytest.approx(np.mean([1.1 - 5.1, 1.1 - 0, 0 - DIAGONAL]))
    # A smaller distance is better.
    assert (distances["better"], distances["improved"], distances["worsened"]) == ("lower", 2, 1)


def test_the_spread_of_members_is_the_mean_of_largest_minus_smallest(folder):
    found = evaluate(folder, "--per-member")
    assert found.code == 0
    assert found.json["curves"] == found.json["changes"] == []
    assert found.json["members"] == 3
    dices, distances = (only(found.json["spreads"], metric=metric) for metric in ("dice", "hd95_max"))
    assert dices["values"]["mean"] == pytest.approx(np.mean([18 / 19 - 14 / 17, 1 - 18 / 19, 1 - 0]))
    assert distances["values"]["mean"] == pytest.approx(np.mean([5.1 - 1.1, 1.1 - 0, DIAGONAL]))
    assert (dices["values"]["n"], dices["values"]["undefined"]) == (3, 1)
    assert dices["step"] is dices["timestep"] is None


def test_members_of_each_step_are_spread_step_by_step(folder):
    draws = {"better": [(3, 0), (2, 1), (1, 1)], "worse": [(1, 0), (1, 1), (2, 2)]}
    for case in LACKING:
        for timestep, pair in zip(STEPS, draws.get(case, [(0, 0)] * 3), strict=True):
            for number, k in enumerate(pair):
                write(folder / "out" / "members" / f"{case}_{number:03d}_t{timestep:04d}.nii.gz", line(k))
    for path in (folder / "out" / "members").glob("*_002.nii.gz"):
        path.unlink()
    found = evaluate(folder, "--per-step", "--per-member").json
    assert found["members"] == 2
    for step, (better, worse) in enumerate(zip(draws["better"], draws["worse"], strict=True), 1):
        point = only(found["spreads"], step=step, metric="dice")
        ranges = [abs(dice(a) - dice(b)) for a, b in (better, worse)]
        # Nothing is there in `absent`, and all draws find ten voxels: Dice 0 each, which is no spread.
        assert point["values"]["mean"] == pytest.approx(sum(ranges) / 4)
        assert point["timestep"] == STEPS[step - 1]
        assert point["values"]["n"] == 4
    # The curves are those of the fused label maps, whatever the members are.
    assert only(found["curves"], step=2, metric="dice")["values"]["mean"] == pytest.approx((16 / 18 + 1 + 1) / 3)


def test_tables_hold_what_the_json_does_and_the_picture_is_one(folder):
    done("evaluate", folder / "out", folder / "labels", "--workers", 0, "--per-step", "--per-member", "--quiet")
    rows = list(csv.DictReader((folder / "out" / "steps.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3 + 4 * 3
    row = only(rows, case="better", step="1", member="")
    assert (row["class"], row["timestep"], float(row["dice"])) == ("line", "1000", pytest.approx(14 / 17))
    assert float(row["hd95_max"]) == pytest.approx(5.1)
    assert only(rows, case="absent", step="2")["dice"] == ""
    assert only(rows, case="found", member="2")["missed"] == "1"
    curves = list(csv.DictReader((folder / "out" / "step_curves.csv").read_text().splitlines()))
    content = json.loads((folder / "out" / "steps.json").read_text())
    assert len(curves) == len(content["curves"]) + len(content["spreads"]) == 6 + 2
    point = only(curves, curve="score", step="3", metric="hd95_max")
    assert float(point["mean"]) == only(content["curves"], step=3, metric="hd95_max")["values"]["mean"]
    assert only(curves, curve="member_range", metric="dice")["members"] == "3"
    assert (folder / "out" / "step_curves.png").read_bytes().startswith(b"\x89PNG")
    shown = done("evaluate", folder / "out", folder / "labels", "--workers", 0, "--per-step", "--per-member").stdout
    for words in ("0.6078", "66.7 %", "Missed or spurious", "in no mean: up to 1", "3 members"):
        assert words in shown
    # The same command finds the same.
    again = msd("evaluate", folder / "out", folder / "labels", "--workers", 0, "--per-step", "--per-member", "--json")
    assert again.json == content


def test_classes_have_curves_of_their_own_beside_the_mean_over_them(tmp_path):
    make_folder(tmp_path, timesteps=(9, 4), classes={"line": (1,), "other": (2,)})
    for case in LACKING:
        both = line(0)
        both[1, 2, :10] = 2
        write(tmp_path / "labels" / f"{case}.nii.gz", both)
        for timestep, (k_line, k_other) in {9: (2, MISSED), 4: (1, 1)}.items():
            found = line(k_line)
            found[1, 2, : 10 - k_other] = 2
            write(tmp_path / "out" / "steps" / f"{case}_t{timestep:04d}.nii.gz", found)
    content = evaluate(tmp_path, "--per-step").json
    first = {
        point["class_name"]: point for point in content["curves"] if (point["step"], point["metric"]) == (1, "dice")
    }
    assert first["line"]["values"]["mean"] == pytest.approx(16 / 18)
    assert first["other"]["values"]["mean"] == 0
    assert first[None]["values"]["mean"] == pytest.approx(8 / 18)
    assert (first[None]["missed"], first["line"]["missed"], first["other"]["missed"]) == (4, 0, 4)
    assert only(content["changes"], class_name="line", metric="dice")["improved"] == 4


def test_missing_files_are_named_with_the_flag_that_writes_them(folder, tmp_path):
    steps, members = folder / "out" / "steps", folder / "out" / "members"
    (steps / "worse_t0500.nii.gz").unlink()
    one = evaluate(folder, "--per-step")
    assert one.code == 3
    assert "worse_t0500.nii.gz" in one.stderr
    assert "--save-steps" in one.stderr
    shutil.rmtree(steps)
    assert "--save-steps" in evaluate(folder, "--per-step").stderr
    (members / "better_001.nii.gz").unlink()
    assert "better_001.nii.gz" in evaluate(folder, "--per-member").stderr
    for path in members.glob("*_00[12].nii.gz"):
        path.unlink()
    single = evaluate(folder, "--per-member")
    assert single.code == 2
    assert "--draws 5 --save-members" in single.stderr
    shutil.rmtree(members)
    none = evaluate(folder, "--per-member")
    assert none.code == 3
    assert "--save-members" in none.stderr
    no_steps = evaluate(make_folder(tmp_path / "supervised", timesteps=(), method="supervised"), "--per-step")
    assert no_steps.code == 2
    assert "--save-steps" in no_steps.stderr
    assert not (folder / "out" / "steps.json").exists()


def test_a_case_that_cannot_be_scored_is_named_and_left_out_of_everything(folder):
    write_volume(folder / "out" / "steps" / "worse_t0500.nii.gz", np.zeros((3, 3, 3), np.uint8))
    (folder / "out" / "found.nii.gz").unlink()
    outcome = evaluate(folder, "--per-step")
    assert outcome.code == 5
    assert list(outcome.json["failures"]) == ["worse"]
    assert outcome.json["cases"] == ["absent", "better"]
    assert any("without a prediction" in note and "1" in note for note in outcome.json["notes"])


def test_the_picture_of_curves_is_taken_for_no_label_map(folder):
    done("evaluate", folder / "out", folder / "labels", "--workers", 0, "--per-step", "--quiet")
    assert sorted(label_maps_by_case(folder / "out")) == sorted(LACKING)


def test_flags_that_speak_of_whole_predictions_are_refused(folder):
    for words in (["--cv"], ["--fail-below", "dice=0.5"], ["--allow-missing"]):
        outcome = evaluate(folder, "--per-step", *words)
        assert outcome.code == 2
        assert words[0] in outcome.stderr
