"""Photographs, several channels, masks for normalisation, patients with several images, and label budgets."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from msd_shell import QUICK, done, msd, trained, write_dataset, write_volume

from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

FLAT = PhantomSettings(shape=(40, 33), spacing_mm=None, difficulty=0.1)
DEEP = PhantomSettings(shape=(12, 24, 20), difficulty=0.1)


def write_photographs(folder, n):
    """Write RGB images `photo_N.png` of odd sizes, and masks `photo_N_mask.png` of 0 and 255."""
    folder.mkdir()
    for index in range(n):
        phantom = make_phantom(index, FLAT)
        grey = phantom.image.array[0]
        colours = np.stack([grey, 255 - grey, grey // 2], axis=-1)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(folder / f"photo_{index}.png"))
        mask = np.where(phantom.label > 0, 255, 0).astype(np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(folder / f"photo_{index}_mask.png"))
    return folder


def test_photographs_are_resized_to_one_grid_and_segmented_at_their_own_size(tmp_path):
    source = write_photographs(tmp_path / "photos", 6)
    words = "--images photo_?.png --labels photo_?_mask.png --label-suffix _mask --label-map 255:organ --test-count 2"
    done("convert", "folder", source, "--dataset", 41, "--name", "Photo", *words.split(), "--workspace", tmp_path)
    here = ["--workspace", tmp_path, "--workers", 0]
    plan = done("plan", 41, *here, "--size", 32, "--scale", "tiny", "--json").json["plan"]
    assert plan["geometry"] == "resize"
    assert list(plan["configurations"]) == ["2d"]
    run = trained(tmp_path, 41, "--set", "steps=60")
    output = tmp_path / "out"
    done("predict", run, tmp_path / "raw" / "Dataset041_Photo" / "imagesTs", output, *here)
    names = sorted(path.stem for path in output.glob("*.png"))
    assert len(names) == 2
    for name in names:
        image = SimpleITK.ReadImage(str(source / f"{name}.png"))
        label = SimpleITK.ReadImage(str(output / f"{name}.png"))
        assert label.GetSize() == image.GetSize()
        assert set(np.unique(SimpleITK.GetArrayFromImage(label))) <= {0, 1}
    scores = done("evaluate", output, 41, *here, "--json").json
    assert scores["units"] == {"distance": ["px"], "volume": ["px"]}
    assert scores["foreground_mean"]["Dice"] > 0.7
    # The raw tree: the predictions' dataset remembers that 255 is the organ; flags can say the same.
    (tmp_path / "cases.txt").write_text("\n".join(names) + "\n")
    tree = ["evaluate", output, source, "--labels", "*_mask.png", "--label-suffix", "_mask", *here, "--json"]
    for flags in ([], ["--label-map", "255:organ"], ["--threshold", 127]):
        raw = done(*tree, "--cases", tmp_path / "cases.txt", *flags).json
        assert raw["foreground_mean"] == pytest.approx(scores["foreground_mean"], abs=1e-9)


def test_every_channel_reaches_the_network_in_its_order(tmp_path):
    content = {
        "channel_names": {"0": "T1", "1": "CT"},
        "labels": {"background": 0, "organ": 1, "nodule": 2},
        "numTraining": 4,
    }
    folder = write_dataset(tmp_path, 42, "Channels", content)
    for index in range(4):
        phantom = make_phantom(index, DEEP)
        for channel, values in enumerate((phantom.image.array[0], 255 - phantom.image.array[0])):
            path = folder / "imagesTr" / f"p{index}_{channel:04d}.nii.gz"
            write_volume(path, values.astype(np.float32))
        write_volume(folder / "labelsTr" / f"p{index}.nii.gz", phantom.label)
    run = trained(tmp_path, 42, "--config", "3d", "--set", "steps=2")
    names = [path.name for path in (folder / "imagesTr").iterdir()]
    assert len(names) == 8
    done("predict", run, folder / "imagesTr", tmp_path / "out", "--workspace", tmp_path, "--workers", 0)
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name in names:
        other = name.replace("_0000.", "_x.").replace("_0001.", "_0000.").replace("_x.", "_0001.")
        (swapped / other).write_bytes((folder / "imagesTr" / name).read_bytes())
    done("predict", run, swapped, tmp_path / "out_swapped", "--workspace", tmp_path, "--workers", 0)
    assert len(list((tmp_path / "out").glob("p?.nii.gz"))) == 4
    assert (tmp_path / "out" / "p0.nii.gz").read_bytes() != (tmp_path / "out_swapped" / "p0.nii.gz").read_bytes()
    # One channel of a case is missing: it is named, the others go on.
    (swapped / "p0_0001.nii.gz").unlink()
    outcome = msd("predict", run, swapped, tmp_path / "out_three", "--workspace", tmp_path, "--workers", 0)
    assert outcome.code == 5
    assert "p0" in outcome.stderr
    assert len(list((tmp_path / "out_three").glob("p?.nii.gz"))) == 3


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A dataset of three patients with two images each, with body masks, planned with masked quantiles."""
    workspace = tmp_path_factory.mktemp("masked")
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, "nodule": 2},
        "numTraining": 6,
        "groups": {f"p{index}": f"patient{index // 2}" for index in range(6)},
    }
    folder = write_dataset(workspace, 43, "Masked", content)
    for index in range(6):
        phantom = make_phantom(index, DEEP)
        write_volume(folder / "imagesTr" / f"p{index}_0000.nii.gz", phantom.image.array[0].astype(np.float32))
        write_volume(folder / "labelsTr" / f"p{index}.nii.gz", phantom.label)
        write_volume(folder / "masksTr" / f"p{index}.nii.gz", (phantom.image.array[0] > 50).astype(np.uint8))
    words = ["--normalisation", "quantile", "--scale", "tiny", "--workers", 0]
    done("plan", 43, "--workspace", workspace, *words)
    return workspace, folder


@pytest.mark.fault("F88")
def test_patients_are_never_split_between_training_and_validation(masked):
    workspace, folder = masked
    folds = json.loads((workspace / "preprocessed" / folder.name / "splits_final.json").read_text())
    assert len(folds) == 3
    for fold in folds:
        patients = [{int(case[1]) // 2 for case in fold[part]} for part in ("train", "val")]
        assert patients[0] & patients[1] == set()


def test_fewer_labels_are_part_of_more_labels_and_count_patients(masked):
    workspace, _ = masked
    sets = {}
    for n, count in ((1, "groups"), (2, "groups"), (1, "cases"), (3, "cases")):
        words = ["--cases", n, "--count", count, "--set", "steps=1", "--config", "3d"]
        sets[n, count] = set(json.loads((trained(workspace, 43, *words) / "run.json").read_text())["train_cases"])
    assert [len(chosen) for chosen in sets.values()] == [2, 4, 1, 3]
    assert sets[1, "groups"] < sets[2, "groups"]
    assert sets[1, "cases"] < sets[3, "cases"]
    assert len({int(case[1]) // 2 for case in sets[1, "groups"]}) == 1


def test_masked_quantiles_need_masks_when_training_and_predicting(masked, tmp_path):
    workspace, folder = masked
    run = trained(workspace, 43, "--config", "3d", "--set", "steps=1", "--name", "masks")
    words = ["predict", run, folder / "imagesTr", "--workspace", workspace, "--workers", 0]
    outcome = msd(*words, tmp_path / "without")
    assert outcome.code == 3
    assert "name those of these images with --masks" in outcome.stderr
    with_masks = done(*words, tmp_path / "with", "--masks", folder / "masksTr")
    assert "--masks" not in with_masks.stderr
    assert len(list((tmp_path / "with").glob("*.nii.gz"))) == 6


def test_a_missing_mask_stops_preprocessing_with_code_3(masked, tmp_path):
    shutil.copytree(masked[0], tmp_path / "workspace")
    (tmp_path / "workspace" / "raw" / "Dataset043_Masked" / "masksTr" / "p3.nii.gz").unlink()
    outcome = msd("train", "supervised", 43, "--workspace", tmp_path / "workspace", *QUICK, "--config", "3d")
    assert outcome.code == 3
    assert "p3" in outcome.stderr
    assert "mask" in outcome.stderr


def test_a_plan_without_masks_does_not_miss_one(masked, tmp_path):
    shutil.copytree(masked[0], tmp_path / "workspace")
    splits = tmp_path / "workspace" / "preprocessed" / "Dataset043_Masked" / "splits_final.json"
    validated = json.loads(splits.read_text())[0]["val"][0]
    (tmp_path / "workspace" / "raw" / "Dataset043_Masked" / "masksTr" / f"{validated}.nii.gz").unlink()
    words = ["--plans-name", "plain", "--scale", "tiny", "--workers", 0]
    done("plan", 43, "--workspace", tmp_path / "workspace", *words)
    run = trained(tmp_path / "workspace", 43, "--config", "3d", "--set", "steps=1", "--plans-name", "plain")
    assert (run / "validation" / f"{validated}.nii.gz").is_file()
