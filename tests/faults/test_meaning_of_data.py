"""Data that is whole but means something else: labels, names, leaks, channels; and new images unlike a model's."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.artifacts.label_scheme import label_scheme_from_json
from medsegdiff_cli.artifacts.splits import Fold, Splits
from medsegdiff_cli.checking.check import check_dataset
from medsegdiff_cli.checking.new_images import ModelNeeds, NewCase, check_new_images
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.paths import open_workspace
from medsegdiff_cli.prediction.inputs import find_inputs
from medsegdiff_cli.workflows.check import check
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset

SHAPE_XYZ = (8, 7, 6)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def voxels(seed):
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE_XYZ).astype(np.int16)


def label():
    array = np.zeros(SHAPE_XYZ, np.uint8)
    array[2:4, 2:5, 2:5], array[5:7, 2:5, 2:5] = 1, 2
    return array


def write_info(root, **changes):
    labels = {"background": 0, "liver": 1, "tumour": 2}
    info = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**info, **changes}))


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(tmp_path / "workspace")


@pytest.fixture
def folder(workspace):
    """Four labelled cases in a workspace."""
    root = workspace.raw / "Dataset009_Sound"
    for index, case in enumerate("abcd"):
        save(root / f"imagesTr/{case}_0000.nii.gz", voxels(index))
        save(root / f"labelsTr/{case}.nii.gz", label())
    write_info(root)
    return root


def codes(report):
    return {(problem.severity, problem.code, problem.case) for problem in report.problems}


@pytest.mark.fault("F82")
def test_undeclared_values_are_refused_with_their_counts():
    scheme = label_scheme_from_json({"background": 0, "organ": 1}, None, "test")
    with pytest.raises(InputDataError, match=r"\[7, 255\] are not declared.*7 \(2x\), 255 \(1x\)[\s\S]*case_3"):
        scheme.encode(np.array([0, 1, 7, 7, 255]), "case_3")


@pytest.mark.fault("F83")
def test_images_without_labels_are_listed_by_plan_and_check_and_the_other_way_round_by_check(folder, workspace):
    for case in "ab":
        (folder / f"labelsTr/{case}.nii.gz").unlink()
    (folder / "imagesTr/c_0000.nii.gz").unlink()
    with pytest.raises(InputDataError, match="2 of 3 cases") as refusal:
        plan_dataset(PlanRequest(dataset="9", workspace=workspace))
    assert "imagesTr/a" in str(refusal.value)
    assert "imagesTr/b" in str(refusal.value)
    found = codes(check("9", workspace))
    assert {("error", "label-missing", "a"), ("error", "label-missing", "b"), ("warning", "orphan-label", "c")} <= found


@pytest.mark.fault("F84")
def test_a_case_under_two_endings_is_refused_by_plan_and_check(folder, workspace):
    nib.save(nib.Nifti1Image(voxels(9), AFFINE), folder / "imagesTr/a_0000.nii")
    with pytest.raises(InputDataError, match=r"1 cases are there twice \(a: "):
        plan_dataset(PlanRequest(dataset="9", workspace=workspace))
    assert ("error", "duplicate-case", "a") in codes(check("9", workspace))


@pytest.mark.fault("F85", "F31")
def test_channels_of_a_wrong_number_or_on_other_grids_are_refused(tmp_path):
    first, second = (save(tmp_path / f"a_000{index}.nii.gz", voxels(index)) for index in (0, 1))
    assert read_channels([first, second], n_channels=2).array.shape == (2, *SHAPE_XYZ[::-1])
    with pytest.raises(InputDataError, match="2 channels instead of 3"):
        read_channels([first, second], n_channels=3)
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    save(second, voxels(1), moved)
    with pytest.raises(InputDataError, match=r"different grids \(corners 0.5 mm apart"):
        read_channels([first, second], n_channels=2)


@pytest.mark.fault("F88")
def test_a_patient_or_an_image_on_both_sides_of_a_fold_is_an_error(folder):
    dataset = open_dataset(folder)
    folds = Splits(folds=(Fold(train=("a", "b"), val=("c", "d")), Fold(train=("c", "d"), val=("a", "b"))))
    assert codes(check_dataset(dataset, folds=folds)) == set()
    write_info(folder, groups={"a": "p1", "c": "p1"})
    (problem,) = check_dataset(open_dataset(folder), folds=folds).problems
    assert (problem.severity, problem.code) == ("error", "group-leak")
    assert "fold 0 trains and validates on group 'p1' (a and c)" in problem.message
    write_info(folder)
    shutil.copy(folder / "imagesTr/b_0000.nii.gz", folder / "imagesTr/d_0000.nii.gz")
    found = codes(check_dataset(dataset, folds=folds))
    assert ("error", "fold-leak", "d") in found
    together = Splits(folds=(Fold(train=("a", "c"), val=("b", "d")),))
    assert ("error", "fold-leak", "d") not in codes(check_dataset(dataset, folds=together))


@pytest.mark.fault("F88")
def test_the_folds_that_a_training_would_use_are_those_that_are_checked(folder, workspace):
    shutil.copy(folder / "imagesTr/b_0000.nii.gz", folder / "imagesTr/d_0000.nii.gz")
    assert {code for _, code, _ in codes(check("9", workspace))} == {"duplicate-image", "fold-leak"}
    apart = [{"train": ["a"], "val": ["c"]}]
    beside_plans = workspace.preprocessed / folder.name / "splits_final.json"
    beside_plans.parent.mkdir(parents=True)
    beside_plans.write_text(json.dumps(apart))
    assert {code for _, code, _ in codes(check("9", workspace))} == {"duplicate-image"}
    beside_plans.write_text(json.dumps([{"train": ["a", "nobody"], "val": ["c"]}]))
    assert ("error", "folds-wrong", "") in codes(check("9", workspace))


@pytest.mark.fault("F90")
def test_odd_names_of_cases_are_named(folder):
    for name in ("with space", "-dash", "line\nbreak", "é", "e\u0301", "x" * 200):
        save(folder / "imagesUn" / f"{name}_0000.nii.gz", voxels(len(name)))
    found = codes(check_dataset(open_dataset(folder)))
    assert ("error", "odd-name", "x" * 200) in found
    assert ("warning", "similar-names", "e\u0301") in found or ("warning", "similar-names", "é") in found
    assert {case for _, _, case in found} & {"with space", "-dash"} == set()
    assert any(code == "channel-number" and "line" in case for _, code, case in found)


@pytest.mark.fault("F90")
def test_images_with_odd_names_are_found_or_skipped_with_a_reason(tmp_path):
    folder = tmp_path / "new images"
    usable = ("with space", "-dash", "=1+1", "dots.in.it", "ünï")
    for name in (*usable, "line\nbreak", "é", "e\u0301", "x" * 240, "._resource", ".hidden"):
        save(folder / f"{name}.nii.gz", voxels(0))
    (folder / ".nii.gz").touch()
    found = find_inputs(folder, 1, ".nii.gz")
    assert {case.case for case in found.cases} == set(usable)
    assert sorted(len(path.name) for path, _ in found.skipped) == sorted([8, 9, 17, 247])
    assert all("rename" in reason or "too long" in reason for _, reason in found.skipped)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="no image to predict"):
        find_inputs(tmp_path / "empty", 1, ".nii.gz")


@pytest.mark.fault("F91")
def test_links_in_a_circle_are_refused(folder, workspace):
    (folder / "imagesTs").symlink_to("imagesTs")
    (folder / "imagesTr/e_0000.nii.gz").symlink_to("e_0000.nii.gz")
    (folder / "labelsTr" / "up").symlink_to(folder)
    report = check("9", workspace)
    named = [problem.message for problem in report.problems if problem.code == "broken-link"]
    assert [message.split("'")[1] for message in named] == ["imagesTr/e_0000.nii.gz", "imagesTs"]
    assert ("error", "unreadable", "e") in codes(report)
    with pytest.raises(InputDataError, match="a link that leads nowhere, or in a circle"):
        read_channels([folder / "imagesTr/e_0000.nii.gz"])


def needs(**changes):
    usual = {"name": "model", "n_dims": 3, "n_channels": 1, "spacing_mm": (2.0, 1.0, 1.0), "flags": lambda image: ()}
    return ModelNeeds(**{**usual, **changes})


def report_on(tmp_path, model, **cases):
    found = [NewCase(case=case, images=tuple(paths)) for case, paths in cases.items()]
    return check_new_images(tmp_path, found, [], model)


@pytest.mark.fault("F85", "F86")
def test_new_images_are_compared_with_what_the_model_was_trained_on(tmp_path):
    usual = save(tmp_path / "usual.nii.gz", voxels(0))
    twin = save(tmp_path / "twin.nii.gz", voxels(0))
    coarse = save(tmp_path / "coarse.nii.gz", voxels(1), np.diag([-1.0, -1.0, 9.0, 1.0]))
    flat = save(tmp_path / "flat.nii.gz", voxels(2)[..., 0])
    cut = save(tmp_path / "cut.nii.gz", voxels(3))
    cut.write_bytes(cut.read_bytes()[:-40])
    cases = {"usual": [usual], "twin": [twin], "coarse": [coarse], "flat": [flat], "cut": [cut], "two": [usual, twin]}
    model = needs(flags=lambda image: ["odd"] * int(image.array[0, 0, 0, 0] == voxels(1)[0, 0, 0]))
    assert codes(report_on(tmp_path, model, **cases)) == {
        ("error", "channel-count", "two"),
        ("error", "dimensions", "flat"),
        ("error", "unreadable", "cut"),
        ("warning", "duplicate-image", "usual"),
        ("warning", "spacing", "coarse"),
        ("warning", "unlike-training", "coarse"),
    }
    seen = needs(training_cases=frozenset({"usual"}), spacing_mm=(None, None, None))
    assert codes(report_on(tmp_path, seen, usual=[usual])) == {("warning", "trained-on", "usual")}


@pytest.mark.fault("F81", "F82", "F87")
def test_check_mends_a_copy_on_the_command_line(folder, workspace, tmp_path):
    for case in "abcd":
        save(folder / f"labelsTr/{case}.nii.gz", (label() == 1).astype(np.float32))
    write_info(folder, numTraining=9)
    words = ["check", str(folder), "--workspace", str(workspace.root), "--workers", "0", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    found = {problem["code"] for problem in json.loads(result.stdout)["problems"]}
    assert found == {"class-absent", "num-training", "float-label"}
    write_info(folder, numTraining=9, labels={"background": 0, "liver": 1})
    result = CliRunner().invoke(app, [*words, "--fix", str(tmp_path / "Dataset010_Mended")])
    assert result.exit_code == 0, result.stdout + result.stderr
    content = json.loads(result.stdout)
    assert content["counts"] == {"errors": 0, "warnings": 0, "notes": 0}
    assert {change["file"] for change in content["changes"]} == {
        "dataset.json",
        *(f"labelsTr/{case}.nii.gz" for case in "abcd"),
    }
    assert CliRunner().invoke(app, [*words, "--fix", str(tmp_path / "x"), "--for", "model"]).exit_code == 2
