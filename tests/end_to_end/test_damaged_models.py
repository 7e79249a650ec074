"""Models that are changed, damaged, unfinished or do not belong together are refused before anything is predicted."""

import shutil

import pytest
from msd_shell import done, msd, trained

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture
def run(lab, tmp_path):
    """A copy of the trained fold."""
    shutil.copytree(lab.run.parent, tmp_path / lab.run.parent.name)
    return tmp_path / lab.run.parent.name / "fold_0"


def predict(lab, tmp_path, *models, words=()):
    outcome = msd("predict", *models, lab.images, tmp_path / "out", "--workers", 0, *words)
    assert outcome.code == 0 or not (tmp_path / "out").exists()
    return outcome


def test_a_copied_run_predicts_without_its_dataset_and_workspace(lab, run, tmp_path):
    assert predict(lab, tmp_path, run).code == 0


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no tensors"])
def test_damaged_weights_are_code_6(lab, run, tmp_path, damage):
    path = run / "checkpoints" / "last.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-5] ^= 1
    path.write_bytes({"truncated": content[:-100], "no tensors": b"abc"}.get(damage, content))
    outcome = predict(lab, tmp_path, run)
    assert outcome.code == 6
    assert "last" in outcome.stderr


@pytest.mark.parametrize(("file", "key"), [("plan.yaml", "interpolation: cubic"), ("recipe.yaml", "step_size: 0.5")])
def test_settings_changed_after_training_are_code_6(lab, run, tmp_path, file, key):
    text = (run / file).read_text()
    assert key in text
    (run / file).write_text(text.replace(key, {"plan.yaml": "interpolation: linear"}.get(file, "step_size: 0.7")))
    outcome = predict(lab, tmp_path, run)
    assert outcome.code == 6
    assert "changed after training" in outcome.stderr


def test_a_damaged_record_is_code_6(lab, run, tmp_path):
    (run / "run.json").write_text((run / "run.json").read_text()[:-10])
    assert predict(lab, tmp_path, run).code == 6


def test_a_checkpoint_that_was_never_written_is_code_2_and_says_which_there_are(lab, run, tmp_path):
    outcome = predict(lab, tmp_path, run, words=["--checkpoint", "best"])
    assert outcome.code == 2
    assert "last" in outcome.stderr
    for path in (run / "checkpoints").glob("last*"):
        path.unlink()
    outcome = predict(lab, tmp_path, run)
    assert outcome.code == 2
    assert "finish the training" in outcome.stderr


def test_models_of_different_configurations_are_not_averaged(lab, tmp_path):
    flat = trained(lab.workspace, 1, "--config", "2d", "--set", "steps=1")
    outcome = predict(lab, tmp_path, lab.run, flat)
    assert outcome.code == 2
    assert "different plans or configurations" in outcome.stderr


def test_models_of_one_plan_are_averaged_whatever_their_settings(lab, tmp_path):
    other = trained(lab.workspace, 1, "--config", "3d", "--seed", 5, "--set", "steps=2")
    report = done("predict", lab.run, other, lab.images, tmp_path / "out", "--workers", 0, "--save-members", "--json")
    assert len(report.json["written"]) == 2
    assert len(list((tmp_path / "out" / "members").iterdir())) == 2 * 2
