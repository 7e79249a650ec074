"""`msd predict` with a method of several members: which timesteps predict, and what is said of their agreement."""

import csv
import itertools
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from msd_shell import MAPS, OBLIQUE, done, images_only, labels_of, msd, trained, tree, voxels_of, write_volume
from scipy import stats
from toy_ensemble import FOREGROUND_WEIGHTS

from medsegdiff_cli.methods.registry import METHODS
from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

pytestmark = pytest.mark.xdist_group("lab")

CLASSES = ("background", "organ", "nodule")


@contextmanager
def toy_registered():
    """Let the name `supervised` mean the toy ensemble."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "supervised", replace(METHODS["supervised"], target="toy_ensemble:ToyEnsemble"))
        yield


@pytest.fixture(scope="module")
def predict(lab):
    """The function that predicts the lab's test images with its run as a toy ensemble."""

    def run(output, *words, source=lab.images):
        with toy_registered():
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


@pytest.mark.fault("F100")
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


@pytest.mark.fault("F100")
def test_a_method_without_timesteps_refuses_them(lab, tmp_path):
    outcome = msd("predict", lab.run, lab.images, tmp_path / "out", "--timesteps", "1,10", "--json")
    assert outcome.code == 2
    assert "method 'supervised'" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def alone(predict, tmp_path_factory):
    """Probability maps (class, *native) of each timestep predicted on its own, by case."""
    found: dict[str, list[np.ndarray]] = {}
    for t in FOREGROUND_WEIGHTS:
        folder = tmp_path_factory.mktemp("alone") / "out"
        assert predict(folder, *MAPS, "--timesteps", t).code == 0
        assert not list((folder / "uncertainty").glob("*_variance*"))
        for case in labels_of(folder):
            found.setdefault(case, []).append(probabilities_of(folder, case))
    return {case: np.stack(maps).astype(np.float64) for case, maps in found.items()}


def probabilities_of(folder, case):
    return np.stack([voxels_of(folder / "probabilities" / f"{case}_{name}.nii.gz") for name in CLASSES])


def test_the_ensemble_is_the_mean_of_its_timesteps(reference, alone):
    for case, maps in alone.items():
        np.testing.assert_allclose(probabilities_of(reference, case), maps.mean(0), atol=2e-6)


def test_uncertainty_of_the_members_lies_on_the_grid_of_the_image(lab, reference, alone):
    for case, maps in alone.items():
        inside = maps.mean(0)[0] < 1  # outside of the crop everything is certain
        expected = {
            "variance": maps.var(0).mean(0),
            "entropy": stats.entropy(maps.mean(0), axis=0),
        }
        image = SimpleITK.ReadImage(str(lab.images / f"{case}_0000.nii.gz"))
        for name, values in expected.items():
            found = SimpleITK.ReadImage(str(reference / "uncertainty" / f"{case}_{name}.nii.gz"))
            assert found.GetSize() == image.GetSize()
            for place in ("GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(found, place)(), getattr(image, place)(), atol=1e-5)
            found_values = SimpleITK.GetArrayFromImage(found)
            np.testing.assert_allclose(found_values[inside], values[inside], atol=1e-5)
            assert found_values.max() > 0.01


def rows_of(folder):
    return list(csv.DictReader((folder / "volumes.csv").read_text().splitlines()))


def test_the_table_says_how_much_the_members_agree_on_each_class(reference):
    members, rows = members_of(reference), rows_of(reference)
    assert len(rows) == 4
    for row in rows:
        value = CLASSES.index(row["class"])
        masks = [members[f"{row['case']}_{number:03d}"] == value for number in range(4)]
        pairs = list(itertools.combinations(masks, 2))
        shared = sum(2 * int((first & second).sum()) for first, second in pairs)
        total = sum(int(first.sum() + second.sum()) for first, second in pairs)
        assert row["member_agreement"] == (f"{shared / total:.4f}" if total else "")
    assert any(0 < float(row["member_agreement"] or 0) < 1 for row in rows)


def test_one_member_agrees_with_nobody(predict, tmp_path):
    assert predict(tmp_path / "out", "--timesteps", 10).code == 0
    assert {(row["agreement"], row["member_agreement"]) for row in rows_of(tmp_path / "out")} == {("", "")}


def test_the_majority_is_voted_on_by_the_members_label_maps(predict, reference, alone, tmp_path):
    assert predict(tmp_path / "out", *MAPS, "--fusion", "majority").code == 0
    members, mean, voted = members_of(reference), labels_of(reference), labels_of(tmp_path / "out")
    for case, maps in alone.items():
        labels = np.stack([members[f"{case}_{number:03d}"] for number in range(4)])
        votes = np.stack([(labels == value).sum(0) for value in range(3)])
        best = np.where(votes == votes.max(0), maps.mean(0), -1)
        clear = np.sort(best, axis=0)[-1] - np.sort(best, axis=0)[-2] > 1e-5  # not by the last bits of a mean
        np.testing.assert_array_equal(voted[case][clear], best.argmax(0)[clear])
        assert clear.mean() > 0.99
    assert any((voted[case] != mean[case]).any() for case in voted)
    outcome = predict(tmp_path / "out", *MAPS)
    assert outcome.code == 2
    assert "other settings (fusion)" in outcome.stderr


def test_an_unknown_fusion_is_code_2_with_the_nearest(predict, tmp_path):
    outcome = predict(tmp_path / "out", "--fusion", "majorty")
    assert outcome.code == 2
    assert "majority" in outcome.stderr


def test_the_recipe_sets_the_fusion_of_validation_and_prediction(lab, tmp_path):
    words = ["--config", "3d", "--set", "fusion=majority", "--set", "validate_every_steps=20"]
    with toy_registered():
        run = trained(lab.workspace, 1, *words)
        done("predict", run, lab.images, tmp_path / "own", "--workers", 0, "--save-members")
        done("predict", run, lab.images, tmp_path / "mean", "--workers", 0, "--fusion", "mean")
    rules = [
        json.loads((folder / "prediction.json").read_text())["settings"]["fusion"]
        for folder in (run / "validation", tmp_path / "own", tmp_path / "mean")
    ]
    assert rules == ["majority", "majority", "mean"]
    own, mean = labels_of(tmp_path / "own"), labels_of(tmp_path / "mean")
    assert any((own[case] != mean[case]).any() for case in own)
    # The images lie on the network's grid already, so the validation while training scored the same label maps.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((run / "validation" / "summary.json").read_text())
    assert last["validation"]["score"] == pytest.approx(summary["foreground_mean"]["Dice"], abs=1e-9)


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_an_image_of_other_voxels_gets_every_map_on_its_own_grid(predict, tmp_path, rule):
    array = make_phantom(50, PhantomSettings(shape=(11, 17, 15), difficulty=0.2, seed=0)).image.array[0]
    source = tmp_path / "coarse_0000.nii.gz"
    write_volume(source, array.astype(np.float32), (1.5, 1.4, 2.9), OBLIQUE, (-3.0, 4.5, 60.25))
    assert predict(tmp_path / "out", *MAPS, "--fusion", rule, source=source).code == 0
    image = SimpleITK.ReadImage(str(source))
    written = [*(tmp_path / "out").rglob("*.nii.gz")]
    assert len(written) == 1 + 3 + 2 + 4
    for path in written:
        found = SimpleITK.ReadImage(str(path))
        assert found.GetSize() == image.GetSize()
        for place in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(found, place)(), getattr(image, place)(), atol=1e-5)
    # What all members say alike is the prediction under either rule, up to borders that are drawn between voxels.
    label, members = labels_of(tmp_path / "out")["coarse"], np.stack(list(members_of(tmp_path / "out").values()))
    unanimous = (members == members[0]).all(0)
    assert (label[unanimous] == members[0][unanimous]).mean() > 0.95
