"""`msd predict`: the same bytes however it is run, nothing done twice, and bad cases that do not stop the others."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from msd_shell import MAPS, done, images_only, labels_of, msd, trained, tree, voxels_of, write_volume

pytestmark = pytest.mark.xdist_group("lab")


def predict(lab, source, output, *words, model=None):
    return msd("predict", model or lab.run, source, output, "--workspace", lab.workspace, "--workers", 0, *words)


@pytest.fixture(scope="module")
def images(lab, tmp_path_factory):
    """Four images in one folder: both test cases, and two that the model was trained on."""
    folder = tmp_path_factory.mktemp("images")
    for path in [*sorted(lab.images.iterdir()), *sorted((lab.dataset / "imagesTr").iterdir())[:2]]:
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def reference(lab, images, tmp_path_factory):
    """All four, predicted at once without workers, with all maps."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    assert predict(lab, images, folder, *MAPS).code == 0
    return folder


def test_workers_change_no_byte(lab, images, reference, tmp_path):
    done("predict", lab.run, images, tmp_path / "out", "--workers", 2, *MAPS)
    assert images_only(tmp_path / "out") == images_only(reference)
    assert len(images_only(reference)) == 4 * (1 + 3 + 1 + 1)


def test_shards_change_no_byte(lab, images, reference, tmp_path):
    for shard in (1, 0):
        report = predict(lab, images, tmp_path / "out", *MAPS, "--num-shards", 2, "--shard-id", shard, "--json").json
        assert len(report["written"]) == 2
    assert images_only(tmp_path / "out") == images_only(reference)


def test_a_case_alone_has_the_bytes_it_has_among_others(lab, images, reference, tmp_path):
    expected = images_only(reference)
    for path in sorted(images.iterdir())[:2]:
        assert predict(lab, path, tmp_path / "out", *MAPS).code == 0
    found = images_only(tmp_path / "out")
    assert len(found) == 2 * (1 + 3 + 1 + 1)
    assert all(found[name] == expected[name] for name in found)


def test_predicting_again_reuses_every_case(lab, images, reference):
    before = tree(reference)
    report = predict(lab, images, reference, *MAPS, "--json").json
    assert (len(report["written"]), len(report["reused"])) == (0, 4)
    assert {name for name, content in tree(reference).items() if content != before[name]} <= {"prediction.json"}


@pytest.mark.parametrize("damage", ["truncated", "removed", "changed", "sidecar removed"])
def test_an_output_that_is_not_whole_is_computed_again(lab, images, reference, tmp_path, damage):
    shutil.copytree(reference, tmp_path / "out")
    victim = sorted((tmp_path / "out").glob("*.nii.gz"))[1]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-20])
    elif damage == "changed":
        write_volume(victim, np.zeros((4, 4, 4), np.uint8))
    elif damage == "removed":
        victim.unlink()
    else:
        victim.with_name(victim.name.replace(".nii.gz", ".json")).unlink()
    report = predict(lab, images, tmp_path / "out", *MAPS, "--json").json
    assert (len(report["written"]), len(report["reused"])) == (1, 3)
    assert images_only(tmp_path / "out") == images_only(reference)


def test_other_settings_in_the_same_folder_are_code_2_and_overwrite_replaces(lab, images, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "out")
    outcome = predict(lab, images, tmp_path / "out", *MAPS, "--step-size", 0.9)
    assert outcome.code == 2
    assert "--overwrite" in outcome.stderr
    assert images_only(tmp_path / "out") == images_only(reference)
    assert predict(lab, images, tmp_path / "out", *MAPS, "--step-size", 0.9, "--overwrite").code == 0


def test_predictions_of_another_model_in_the_same_folder_are_code_2(lab, images, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "out")
    other = trained(lab.workspace, 1, "--config", "3d", "--seed", 1, "--set", "steps=1")
    outcome = predict(lab, images, tmp_path / "out", model=other)
    assert outcome.code == 2
    assert "other models" in outcome.stderr
    assert tree(tmp_path / "out") == tree(reference)


def test_mirroring_without_an_axis_is_said_to_change_nothing(lab, images, tmp_path):
    outcome = predict(lab, images, tmp_path / "out", "--mirror", "--dry-run")
    assert outcome.code == 0
    assert "--mirror changes nothing" in outcome.stderr


def test_the_folder_of_the_images_is_refused_as_output(lab, images):
    before = tree(images)
    for source in (images, next(images.iterdir())):
        assert predict(lab, source, images).code == 2
    assert tree(images) == before


def test_a_corrupt_case_is_named_and_the_others_are_written(lab, images, reference, tmp_path):
    shutil.copytree(images, tmp_path / "in")
    victim = sorted((tmp_path / "in").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    outcome = predict(lab, tmp_path / "in", tmp_path / "out", *MAPS)
    case = victim.name.removesuffix("_0000.nii.gz")
    assert outcome.code == 5
    assert case in outcome.stderr
    assert sorted(labels_of(tmp_path / "out")) == sorted(set(labels_of(reference)) - {case})
    victim.write_bytes(whole)
    report = predict(lab, tmp_path / "in", tmp_path / "out", *MAPS, "--json").json
    assert (report["written"], len(report["reused"])) == ([case], 3)
    assert images_only(tmp_path / "out") == images_only(reference)


def test_only_corrupt_cases_are_code_3(lab, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "in" / name).write_bytes(b"\x1f\x8b no image")
    outcome = predict(lab, tmp_path / "in", tmp_path / "out", "--json")
    assert outcome.code == 3
    assert outcome.json["exit_code"] == 3
    assert labels_of(tmp_path / "out") == {}


def test_names_without_channel_are_cases_and_what_is_skipped_is_said(lab, images, reference, tmp_path):
    (tmp_path / "in").mkdir()
    first = sorted(images.iterdir())[0]
    shutil.copy(first, tmp_path / "in" / "patient.nii.gz")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    outcome = predict(lab, tmp_path / "in", tmp_path / "out")
    assert outcome.code == 0
    assert "notes.txt" in outcome.stderr
    case = first.name.removesuffix("_0000.nii.gz")
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["patient"], labels_of(reference)[case])


def test_another_format_is_answered_in_that_format_with_the_same_voxels(lab, images, reference, tmp_path):
    (tmp_path / "in").mkdir()
    first = sorted(images.iterdir())[0]
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(first)), str(tmp_path / "in" / "patient.mha"))
    assert predict(lab, tmp_path / "in", tmp_path / "out").code == 0
    found = SimpleITK.ReadImage(str(tmp_path / "out" / "patient.mha"))
    expected = SimpleITK.ReadImage(str(reference / first.name.replace("_0000", "")))
    np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-6)
    same = (SimpleITK.GetArrayFromImage(found) == SimpleITK.GetArrayFromImage(expected)).mean()
    assert same > 0.999


def test_folds_are_averaged(lab, images, tmp_path):
    words = ["--config", "3d", "--set", "steps=2"]
    first, second = (trained(lab.workspace, 1, *words, "--fold", fold) for fold in (0, 1))
    assert first.parent == second.parent
    maps = {}
    for name, model in (("0", first), ("1", second), ("both", first.parent)):
        assert (
            predict(lab, images, tmp_path / name, "--save-probabilities", "--save-uncertainty", model=model).code == 0
        )
        paths = sorted((tmp_path / name / "probabilities").iterdir())
        maps[name] = np.stack([voxels_of(path).ravel()[:2000] for path in paths])
    np.testing.assert_allclose(maps["both"], (maps["0"] + maps["1"]) / 2, atol=1e-3)
    assert abs(maps["0"] - maps["1"]).max() > 0.01
    sidecar = json.loads(sorted((tmp_path / "both").glob("*_*.json"))[0].read_text())
    assert len(sidecar["model_digests"]) == 2
    assert 0 <= sidecar["agreement"] <= 1
    assert list((tmp_path / "both" / "uncertainty").glob("*_variance.nii.gz"))
    assert predict(lab, images, tmp_path / "one", "--folds", "1", "--save-probabilities", model=first.parent).code == 0
    assert images_only(tmp_path / "one").items() <= images_only(tmp_path / "1").items()


def test_the_folds_of_a_run_are_merged_into_one_cross_validation(lab):
    words = ["--config", "3d", "--set", "steps=2"]
    runs = [trained(lab.workspace, 1, *words, "--fold", fold) for fold in (0, 1)]
    single = [json.loads((run / "validation" / "summary.json").read_text()) for run in runs]
    merged = done("evaluate", runs[0].parent, "--cv", "--json").json
    assert done("evaluate", runs[0].parent.name, "--cv", "--json", "--workspace", lab.workspace).json == merged
    cases = [case for summary in single for case in summary["metric_per_case"]]
    assert sorted(case["case"] for case in merged["metric_per_case"]) == sorted(case["case"] for case in cases)
    dice = [case["metrics"]["1"]["Dice"] for case in cases]
    assert merged["mean"]["1"]["Dice"] == pytest.approx(np.mean(dice))


def test_every_sidecar_carries_its_provenance(lab, images, reference):
    weights = json.loads((lab.run / "run.json").read_text())["weights_digest"]
    for image in images.iterdir():
        sidecar = json.loads((reference / image.name.replace("_0000.nii.gz", ".json")).read_text())
        assert sidecar["model_digests"] == [weights]
        assert {"plan_digest", "msd_version", "command", "seed"} <= {
            key for key, value in sidecar.items() if value != ""
        }
        assert list(sidecar["input_digests"]) == [image.name]
