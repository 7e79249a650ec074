"""`msd predict --postprocess`, and a list that a run brings along."""

import json

import numpy as np
import pytest
from msd_shell import done, labels_of, msd, trained
from skimage import measure

pytestmark = pytest.mark.xdist_group("lab")


def components(label, value):
    return measure.label(label == value, connectivity=label.ndim).max()


def test_a_list_on_the_command_line_changes_every_label_map_and_is_written_down(lab, tmp_path):
    plain, cleaned = tmp_path / "plain", tmp_path / "cleaned"
    done("predict", lab.run, lab.images, plain, "--workers", 0)
    words = ["--postprocess", "largest-component", "--save-members"]
    done("predict", lab.run, lab.images, cleaned, "--workers", 0, *words)
    before, after = labels_of(plain), labels_of(cleaned)
    assert any(components(before[case], value) > 1 for case in before for value in (1, 2))
    for case, label in after.items():
        assert all(components(label, value) <= 1 for value in (1, 2))
        assert ((label == before[case]) | (label == 0)).all()
        np.testing.assert_array_equal(labels_of(cleaned / "members")[f"{case}_000"], label)
        sidecar = json.loads((cleaned / f"{case}.json").read_text())
        assert sidecar["voxels"]["organ"] == (label == 1).sum()
    stored = json.loads((cleaned / "prediction.json").read_text())["settings"]["postprocessing"]
    assert stored == [{"step": "largest-component", "classes": None, "connectivity": "full"}]
    # Another list is another prediction.
    again = msd("predict", lab.run, lab.images, cleaned, "--workers", 0, "--postprocess", "fill-holes")
    assert again.code == 2
    assert "postprocessing" in again.stderr
    wrong = msd("predict", lab.run, lab.images, tmp_path / "wrong", "--postprocess", "largest-components")
    assert wrong.code == 2
    assert "did you mean 'largest-component'" in wrong.stderr


@pytest.mark.slow
def test_a_run_and_its_bundle_bring_their_list_along(lab, tmp_path):
    words = ["--config", "3d", "--set", "prediction.postprocessing=[largest-component]", "--name", "cleaned"]
    run = trained(lab.workspace, 1, *words)
    settings = json.loads((run / "validation" / "prediction.json").read_text())["settings"]
    assert [step["step"] for step in settings["postprocessing"]] == ["largest-component"]
    bundle = tmp_path / "cleaned.msd"
    done("bundle", "export", run.parent, bundle, "--workspace", lab.workspace)
    done("predict", bundle, lab.images, tmp_path / "own", "--workers", 0)
    done("predict", bundle, lab.images, tmp_path / "none", "--workers", 0, "--postprocess", "none")
    own, none = labels_of(tmp_path / "own"), labels_of(tmp_path / "none")
    assert all(components(label, value) <= 1 for label in own.values() for value in (1, 2))
    assert any((own[case] != none[case]).any() for case in own)
    unknown = ["--set", "prediction.postprocessing=[{step: fill-holes, classes: [organs]}]", "--name", "unknown"]
    refused = msd("train", "supervised", 1, "--workspace", lab.workspace, "--config", "3d", *unknown)
    assert refused.code == 2
    assert "did you mean 'organ'" in refused.stderr
