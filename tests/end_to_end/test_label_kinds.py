"""Regions, ignored voxels and arbitrary label values: from a user's own nnU-Net dataset to scores."""

import json

import numpy as np
import pytest
from msd_shell import done, labels_of, msd, trained, voxels_of, write_dataset, write_volume

from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

SETTINGS = PhantomSettings(shape=(12, 24, 20), difficulty=0.1)


def write_cases(folder, n, relabel=lambda label: label, part="Tr", first=0):
    """Write `n` phantoms with nnU-Net's names; `relabel` maps the phantom's 0, 1, 2 to the dataset's values."""
    for index in range(first, first + n):
        phantom = make_phantom(index, SETTINGS)
        write_volume(folder / f"images{part}" / f"p{index}_0000.nii.gz", phantom.image.array[0].astype(np.float32))
        if part != "Un":
            write_volume(folder / f"labels{part}" / f"p{index}.nii.gz", relabel(phantom.label).astype(np.int16))


def predicted(workspace, run, folder):
    done("predict", run, folder / "imagesTs", workspace / "out", "--workspace", workspace, "--workers", 0)
    return labels_of(workspace / "out")


def scores_of(workspace, folder):
    return done("evaluate", workspace / "out", folder, "--workers", 0, "--json").json


def test_arbitrary_label_values_are_read_mapped_and_restored(tmp_path):
    values = np.array([0, 205, 420])
    labels = {"background": 0, "organ": 205, "nodule": 420}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 4}
    folder = write_dataset(tmp_path, 31, "Values", content)
    write_cases(folder, 4, lambda label: values[label])
    write_cases(folder, 1, lambda label: values[label], part="Ts", first=4)
    run = trained(tmp_path, folder, "--config", "3d", "--set", "steps=40")
    maps = predicted(tmp_path, run, folder)
    assert {int(value) for label in maps.values() for value in np.unique(label)} == {0, 205, 420}
    summary = scores_of(tmp_path, folder)
    assert list(summary["mean"]) == ["205", "420"]
    truth = labels_of(folder / "labelsTs")["p4"] == 205
    found = maps["p4"] == 205
    dice = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    assert summary["mean"]["205"]["Dice"] == pytest.approx(dice)
    assert dice > 0.5


def test_regions_are_trained_with_sigmoids_and_painted_in_their_order(tmp_path):
    # "whole" comes first and is painted first, then "core" on top of it; their names sort the other way round.
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
        "numTraining": 4,
    }
    folder = write_dataset(tmp_path, 32, "Regions", content)
    write_cases(folder, 4)
    write_cases(folder, 1, part="Ts", first=4)
    run = trained(tmp_path, 32, "--config", "3d", "--set", "steps=60")
    done("predict", run, folder / "imagesTs", tmp_path / "out", "--workers", 0, "--save-probabilities")
    label = labels_of(tmp_path / "out")["p4"]
    maps = {name: voxels_of(tmp_path / f"out/probabilities/p4_{name}.nii.gz") for name in ("whole", "core")}
    assert set(np.unique(label)) == {0, 1, 2}
    # Sigmoids: both regions can be probable in one voxel, so they sum to more than one inside of the core.
    assert (maps["whole"] + maps["core"]).max() > 1.01
    painted = np.where(maps["core"] > 0.5, 2, np.where(maps["whole"] > 0.5, 1, 0))
    assert (painted == label).mean() > 0.999
    summary = scores_of(tmp_path, folder)
    assert summary["names"] == {"(1, 2)": "whole", "2": "core"}
    truth, found = labels_of(folder / "labelsTs")["p4"] > 0, label > 0
    dice = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    assert summary["mean"]["(1, 2)"]["Dice"] == pytest.approx(dice)
    assert list(json.loads((run.parents[3] / "raw" / folder.name / "dataset.json").read_text())["labels"])[1] == "whole"


def test_ignored_voxels_teach_nothing_count_nowhere_and_are_never_predicted(tmp_path):
    labels = {"background": 0, "organ": 1, "nodule": 2, "ignore": 3}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 4}

    def half_ignored(label, below):
        marked = label.copy()
        # What lies under the ignored half is replaced, so a network that looked at it would learn something else.
        marked[:, : marked.shape[1] // 2] = below
        return marked

    folder = write_dataset(tmp_path, 33, "Ignore", content)
    write_cases(folder, 4, lambda label: half_ignored(label, 3))
    write_cases(folder, 1, lambda label: half_ignored(label, 3), part="Ts", first=4)
    run = trained(tmp_path, 33, "--config", "3d", "--set", "steps=40")
    label = predicted(tmp_path, run, folder)["p4"]
    assert set(np.unique(label)) <= {0, 1, 2}
    # Nothing was learned about the ignored half, but the image there shows organs: they are segmented all the same.
    assert (label[:, : label.shape[1] // 2] > 0).any()
    summary = scores_of(tmp_path, folder)
    truth = labels_of(folder / "labelsTs")["p4"]
    seen = truth != 3
    organ, found = (truth == 1) & seen, (label == 1) & seen
    assert summary["mean"]["1"]["Dice"] == pytest.approx(2 * (organ & found).sum() / (organ.sum() + found.sum()))
    assert "3" not in summary["mean"]
    case = summary["metric_per_case"][0]["metrics"]["1"]
    assert case["TP"] + case["FP"] + case["FN"] + case["TN"] == seen.sum()


def test_a_dataset_of_unlabelled_images_is_planned_but_not_trained_on(tmp_path):
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "numTraining": 0}
    folder = write_dataset(tmp_path, 34, "Unlabelled", content)
    write_cases(folder, 3, part="Un")
    plan = done("plan", 34, "--workspace", tmp_path, "--workers", 0, "--scale", "tiny", "--json").json["plan"]
    assert "3d" in plan["configurations"]
    report = done("preprocess", 34, "--workspace", tmp_path, "--config", "3d", "--workers", 0, "--json").json
    assert len(report["written"]) == 3
    outcome = msd("train", "supervised", 34, "--workspace", tmp_path, "--workers", 0)
    assert outcome.code == 3
    assert "no labelled case" in outcome.stderr
    assert "labelsTr" in outcome.stderr


@pytest.mark.fault("F82")
def test_an_undeclared_label_value_is_code_3_and_named(tmp_path):
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "numTraining": 4}
    folder = write_dataset(tmp_path, 35, "Undeclared", content)
    write_cases(folder, 4)
    for words in (["check", 35], ["train", "supervised", 35, "--scale", "tiny"]):
        outcome = msd(*words, "--workspace", tmp_path, "--workers", 0)
        assert outcome.code == 3
        assert "2" in outcome.stdout + outcome.stderr
        assert "p0" in outcome.stdout + outcome.stderr
