"""`msd finetune --from`: weights travel between datasets with other channels and classes, and a table says how."""

import json

import numpy as np
import pytest
from msd_shell import QUICK, done, msd, write_dataset, write_volume

from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture(scope="module")
def other(lab, tmp_path_factory):
    """Another dataset in a workspace of its own: two channels, one class, coarser voxels."""
    workspace = tmp_path_factory.mktemp("other")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "body": 1}, "numTraining": 4}
    folder = write_dataset(workspace, 50, "Other", content)
    for index in range(4):
        phantom = make_phantom(index, PhantomSettings(shape=(16, 24, 20), difficulty=0.1, seed=7))
        for channel in range(2):
            array = (phantom.image.array[0] // (channel + 1)).astype(np.float32)
            write_volume(folder / "imagesTr" / f"c{index}_{channel:04d}.nii.gz", array, (1.5, 1.5, 2.0))
        write_volume(folder / "labelsTr" / f"c{index}.nii.gz", (phantom.label > 0).astype(np.uint8), (1.5, 1.5, 2.0))
    return workspace


def test_weights_are_adapted_and_every_changed_tensor_is_listed(lab, other):
    words = ["--workspace", other, *QUICK, "--config", "3d", "--set", "steps=2"]
    outcome = done("finetune", "supervised", 50, "--from", lab.run, *words)
    assert "adapted" in outcome.stderr
    assert "of the weights" in outcome.stderr
    # 1 channel became 2, and 3 classes became 2: the first and the last convolution.
    assert "8x1x3x3x3" in outcome.stderr
    assert "8x2x3x3x3" in outcome.stderr
    (run,) = (other / "results" / "Dataset050_Other").glob("*__from-*/fold_0")
    record = json.loads((run / "run.json").read_text())
    assert lab.run.parent.name in record["parent"]["run"]
    assert (run / "validation" / "summary.json").is_file()


def test_too_little_coverage_is_code_2(lab, other):
    words = ["--workspace", other, *QUICK, "--config", "3d", "--set", "steps=2", "--set", "model_channels=24"]
    outcome = msd("finetune", "supervised", 50, "--from", lab.run, *words)
    assert outcome.code == 2
    assert "%" in outcome.stderr
    assert not list((other / "results").glob("*/*model_channels-24*"))


def test_finetuning_without_steps_of_change_starts_at_the_parents_weights(lab):
    words = ["--workspace", lab.workspace, *QUICK, "--config", "3d", "--set", "steps=1", "--set", "learning_rate=1e-12"]
    done("finetune", "supervised", 1, "--from", lab.run, *words, "--name", "still")
    (run,) = (lab.workspace / "results" / "Dataset001_Phantom").glob("*__still/fold_0")
    parent = json.loads((lab.run / "validation" / "summary.json").read_text())
    child = json.loads((run / "validation" / "summary.json").read_text())
    assert child["foreground_mean"]["Dice"] == pytest.approx(parent["foreground_mean"]["Dice"], abs=1e-3)


def test_an_unknown_parent_is_code_2(lab):
    outcome = msd("finetune", "supervised", 1, "--from", "supervized__3d", "--workspace", lab.workspace, *QUICK)
    assert outcome.code == 2
    assert "supervized__3d" in outcome.stderr
