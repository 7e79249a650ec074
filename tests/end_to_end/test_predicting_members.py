"""`msd predict` with a method of several members: which timesteps predict, and what is said of their agreement."""

import json

import numpy as np
import pytest
from msd_shell import MAPS, images_only, labels_of, msd, tree

from medsegdiff_cli.methods.registry import METHODS, MethodEntry

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture(scope="module")
def predict(lab):
    """The function that predicts the lab's test images with its run as a toy ensemble."""

    def run(output, *words, source=lab.images):
        entry = MethodEntry("toy_ensemble:ToyEnsemble", "Toy", "nowhere")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(METHODS, "supervised", entry)
            return msd("predict", lab.run, source, output, "--workspace", lab.workspace, "--workers", 0, *words)

    return run


@pytest.fixture(scope="module")
def reference(predict, tmp_path_factory):
    """Both test cases with all four timesteps and all maps."""
    folder = tmp_path_factory.mktemp("ensemble") / "out"
    assert predict(folder, *MAPS).code == 0
    return folder


def members_of(folder):
    """Return the members' label maps by name CASE_NNN."""
    return labels_of(folder / "members")


def test_the_chosen_timesteps_are_the_members(predict, reference, tmp_path):
    assert predict(tmp_path / "out", *MAPS, "--timesteps", "25,1").code == 0
    every, chosen = members_of(reference), members_of(tmp_path / "out")
    assert len(every) == 2 * len(chosen) == 8
    for case in labels_of(reference):
        # Members come in ascending order of their timesteps, however they were asked for.
        for number, place in enumerate((0, 2)):
            np.testing.assert_array_equal(chosen[f"{case}_{number:03d}"], every[f"{case}_{place:03d}"])
        assert (every[f"{case}_000"] != every[f"{case}_001"]).any()
    info = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert info["settings"]["sampling"]["timesteps"] == [1, 25]


def test_all_timesteps_in_any_spelling_are_the_default(predict, reference):
    before = images_only(reference)
    for words in (("--timesteps", "100,1,25,10"), ("--timesteps", "1 10", "--timesteps", "25, 100")):
        outcome = predict(reference, *MAPS, *words, "--json")
        assert (outcome.code, len(outcome.json["reused"])) == (0, 2)
    assert images_only(reference) == before


@pytest.mark.parametrize("words", [("--timesteps", "1,10"), ("--timesteps", "1"), ("--step-size", 0.9)])
def test_other_settings_are_not_mixed_into_a_folder_not_even_for_another_image(predict, lab, tmp_path, words):
    first, second = sorted(lab.images.iterdir())
    assert predict(tmp_path / "out", "--timesteps", "1,25", source=first).code == 0
    before = tree(tmp_path / "out")
    outcome = predict(tmp_path / "out", *words, source=second)
    assert outcome.code == 2
    assert "other settings (sampling.timesteps" in outcome.stderr
    assert "--overwrite" in outcome.stderr
    assert tree(tmp_path / "out") == before
    assert predict(tmp_path / "out", "--timesteps", "25,1", source=second).code == 0
    assert len(labels_of(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,7,9", "not trained with timestep 7, 9"),
        ("1,1", "twice"),
        ("1,x", "no list of whole numbers"),
        ("1.5", "no list of whole numbers"),
        (",", "no list of whole numbers"),
    ],
)
def test_wrong_timesteps_are_code_2(predict, tmp_path, given, message):
    outcome = predict(tmp_path / "out", "--timesteps", given)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert "not trained" not in message or "choose among 1, 10, 25, 100" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_method_without_timesteps_refuses_them(lab, tmp_path):
    outcome = msd("predict", lab.run, lab.images, tmp_path / "out", "--timesteps", "1,10", "--json")
    assert outcome.code == 2
    assert "method 'supervised'" in outcome.stderr
    assert not (tmp_path / "out").exists()
