"""The Decathlon's layout with its oddities; nibabel is the oracle."""

import json

import nibabel as nib
import numpy as np
import pytest

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options

AFFINE = np.array([[-1.0, 0, 0, 5], [0, 2, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])


@pytest.fixture
def task(tmp_path):
    """Two channels in the fourth axis, float labels, hidden files, a misspelt key; lists of all files."""
    root = tmp_path / "Task99_Two_Words"
    for index, case in enumerate(("t_1", "t_2", "t_3", "t_4")):
        part = "Tr" if index < 2 else "Ts"
        save(root / f"images{part}" / f"{case}.nii.gz", voxels(index))
        (root / f"images{part}" / f"._{case}.nii.gz").write_bytes(b"resource fork")
        if part == "Tr":
            save(root / "labelsTr" / f"{case}.nii.gz", (voxels(index)[..., 0] % 3).astype(np.float32))
    write_header(root)
    return root


def voxels(seed):
    return np.random.default_rng(seed).integers(0, 1000, (5, 6, 7, 2)).astype(np.int16)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def write_header(root, **changes):
    header = {
        "relase": "1.0",
        "licence": "CC-BY-SA 4.0",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "Background", "1": "edema", "2": "tumour"},
        "training": [{"image": f"./imagesTr/t_{n}.nii.gz", "label": f"./labelsTr/t_{n}.nii.gz"} for n in (1, 2)],
        "test": [f"./imagesTs/t_{n}.nii.gz" for n in (3, 4)],
    }
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in (header | changes).items() if v is not None}))


def convert(task, **options):
    destination = task.parent / "raw" / "Dataset099_Two"
    report = convert_dataset("decathlon", task, destination, parse_options(**options))
    return destination, report, json.loads((destination / "dataset.json").read_text())


def test_the_fourth_axis_becomes_one_file_a_channel_on_the_same_grid(task):
    out, report, info = convert(task)
    assert info["channel_names"] == {"0": "FLAIR", "1": "T1w"}
    assert (report.n_training, report.n_test, report.n_test_labelled, report.n_unlabelled) == (2, 2, 0, 0)
    for channel in (0, 1):
        written = nib.load(out / "imagesTr" / f"t_2_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(written.affine, AFFINE)
        np.testing.assert_array_equal(np.asarray(written.dataobj), voxels(1)[..., channel])


def test_labels_are_turned_round_and_written_as_bytes(task):
    out, _, info = convert(task)
    assert info["labels"] == {"background": 0, "edema": 1, "tumour": 2}
    label = nib.load(out / "labelsTr" / "t_1.nii.gz")
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label.dataobj), voxels(0)[..., 0] % 3)


def test_test_images_serve_pretraining_when_asked(task):
    out, report, _ = convert(task, test_as_unlabelled=True)
    assert (report.n_test, report.n_unlabelled) == (0, 2)
    assert not (out / "imagesTs").exists()
    assert len(list((out / "imagesUn").iterdir())) == 4


def test_without_lists_all_visible_files_are_used(task):
    write_header(task, training=None, test=None)
    _, report, _ = convert(task)
    assert (report.n_training, report.n_test) == (2, 2)


def test_a_list_leaves_files_out_and_the_report_says_so(task):
    write_header(task, training=[{"image": "./imagesTr/t_1.nii.gz", "label": "./labelsTr/t_1.nii.gz"}])
    _, report, info = convert(task)
    assert info["numTraining"] == 1
    assert report.notes == ("1 files of imagesTr are not listed in dataset.json and were left out",)


def test_a_missing_folder_of_test_images_is_fine(task):
    for path in (task / "imagesTs").iterdir():
        path.unlink()
    (task / "imagesTs").rmdir()
    _, report, _ = convert(task)
    assert report.n_test == 0
    assert report.notes == ("there is no imagesTs",)


def test_a_listed_file_that_is_missing_is_named(task):
    (task / "imagesTr" / "t_2.nii.gz").unlink()
    with pytest.raises(InputDataError, match=r"1 files listed in dataset.json are missing: t_2\.nii\.gz"):
        convert(task)


def test_a_training_case_without_label_is_named(task):
    (task / "labelsTr" / "t_2.nii.gz").unlink()
    with pytest.raises(InputDataError, match="'t_2' has no label"):
        convert(task)


def test_a_folder_that_is_no_task_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match=r"dataset\.json is missing"):
        convert(tmp_path / "empty")
