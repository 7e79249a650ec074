"""From a folder of images to scores, through the real command line."""

import csv
import json

import numpy as np
import pytest
import SimpleITK
from msd_shell import MAPS, OBLIQUE, done, labels_of, trained, tree, voxels_of

pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture(scope="module")
def predicted(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    done("predict", lab.run, lab.images, folder, "--workspace", lab.workspace, "--workers", 0, *MAPS)
    return folder


def grid_of(path):
    image = SimpleITK.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def test_the_dataset_passes_its_check(lab):
    report = done("check", 1, "--workspace", lab.workspace, "--workers", 0, "--json").json
    assert [problem for problem in report["problems"] if problem["severity"] == "error"] == []


def test_every_output_lies_on_the_grid_of_its_input(lab, predicted):
    inputs = {path.name.removesuffix("_0000.nii.gz"): path for path in lab.images.iterdir()}
    outputs = sorted(predicted.rglob("*.nii.gz"))
    # per case: label map, 3 classes' probabilities, entropy (one member has no variance), one member
    assert len(outputs) == len(inputs) * (1 + 3 + 1 + 1)
    for path in outputs:
        case = next(name for name in inputs if path.name.startswith(name))
        for found, expected in zip(grid_of(path), grid_of(inputs[case]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(grid_of(path)[3], OBLIQUE.ravel(), atol=1e-5)


def test_probabilities_sum_to_one_and_their_argmax_is_the_label_map(lab, predicted):
    for case, label in labels_of(predicted).items():
        names = ["background", "organ", "nodule"]
        paths = [predicted / "probabilities" / f"{case}_{name}.nii.gz" for name in names]
        maps = np.stack([voxels_of(path) for path in paths])
        assert abs(maps.sum(axis=0) - 1).max() < 1e-3
        # Exported maps of the classes are rounded one by one: near-ties may fall either way.
        assert (maps.argmax(axis=0) == label).mean() > 0.999
        assert len(np.unique(label)) > 1
        (member,) = labels_of(predicted / "members").keys() & {f"{case}_000"}
        np.testing.assert_array_equal(labels_of(predicted / "members")[member], label)


def test_volumes_are_voxels_times_their_size(predicted):
    rows = list(csv.DictReader((predicted / "volumes.csv").read_text().splitlines()))
    labels = labels_of(predicted)
    assert len(rows) == 2 * len(labels)
    for row in rows:
        voxels = int((labels[row["case"]] == {"organ": 1, "nodule": 2}[row["class"]]).sum())
        assert int(row["voxels"]) == voxels
        assert float(row["volume_ml"]) == pytest.approx(voxels * 2 * 1 * 1 / 1000)


def test_validation_and_prediction_and_evaluation_agree(lab, tmp_path):
    summary = json.loads((lab.run / "validation" / "summary.json").read_text())
    cases = json.loads((lab.run / "run.json").read_text())["val_cases"]
    output = tmp_path / "again"
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{lab.dataset}/imagesTr/{case}_0000.nii.gz\n" for case in cases))
    done("predict", lab.run, listing, output, "--workspace", lab.workspace, "--workers", 2)
    scores = done("evaluate", output, lab.dataset, "--workers", 0, "--json").json
    assert len(cases) == len(scores["metric_per_case"]) == len(summary["metric_per_case"]) == 2
    for one, other in zip(scores["metric_per_case"], summary["metric_per_case"], strict=True):
        assert one["case"] == other["case"]
        for label in ("1", "2"):
            for metric in ("Dice", "IoU", "hd95_pooled", "assd", "nsd"):
                assert one["metrics"][label][metric] == pytest.approx(other["metrics"][label][metric], abs=1e-6)
    # and by hand, from the files alone
    truth = labels_of(lab.dataset / "labelsTr")
    for case in scores["metric_per_case"]:
        found = labels_of(output)[case["case"]] == 1
        organ = truth[case["case"]] == 1
        dice = 2 * (found & organ).sum() / (found.sum() + organ.sum())
        assert case["metrics"]["1"]["Dice"] == pytest.approx(dice, abs=1e-6)


def test_test_cases_are_scored_against_the_dataset(lab, predicted):
    scores = done("evaluate", predicted, 1, "--workspace", lab.workspace, "--workers", 0, "--json").json
    assert len(scores["metric_per_case"]) == 2
    assert scores["provenance"]["model_digests"]
    assert {"summary.json", "scores.csv"} <= {path.name for path in predicted.iterdir()}


def test_slices_are_trained_on_and_stacked_again(lab, tmp_path):
    run = trained(lab.workspace, 1, "--config", "2d")
    done("predict", run, lab.images, tmp_path / "flat", "--workspace", lab.workspace, "--workers", 0)
    for case, label in labels_of(tmp_path / "flat").items():
        assert grid_of(tmp_path / "flat" / f"{case}.nii.gz")[:3] == grid_of(lab.images / f"{case}_0000.nii.gz")[:3]
        assert label.ndim == 3
    scores = json.loads((run / "validation" / "summary.json").read_text())
    assert len(scores["metric_per_case"]) == 2


def test_the_same_training_again_does_nothing_new(lab):
    before = {name: content for name, content in tree(lab.run).items() if "validation" not in name}
    again = trained(lab.workspace, 1, "--config", "3d")
    after = {name: content for name, content in tree(lab.run).items() if "validation" not in name}
    assert again == lab.run
    assert {name for name in before if before[name] != after.get(name)} <= {"training.log", "run.json"}
    weights = "checkpoints/last.safetensors"
    assert before[weights] == after[weights]


def test_preprocessing_again_reuses_every_case(lab):
    done("preprocess", 1, "--workspace", lab.workspace, "--config", "3d", "--workers", 0)
    report = done("preprocess", 1, "--workspace", lab.workspace, "--config", "3d", "--workers", 0, "--json").json
    assert report["written"] == []
    assert len(report["reused"]) == 7


def test_no_verb_has_changed_an_input(lab, predicted):
    labelled = sorted((lab.source / "img").glob("*.nii.gz"))
    copies = [*(lab.dataset / "imagesTr").iterdir(), *lab.images.iterdir(), *(lab.dataset / "imagesUn").iterdir()]
    assert len(copies) == len(labelled) == 9
    for path in copies:
        source = lab.source / "img" / f"{path.name.removesuffix('_0000.nii.gz')}.nii.gz"
        np.testing.assert_array_equal(
            voxels_of(path),
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(source))),
        )
