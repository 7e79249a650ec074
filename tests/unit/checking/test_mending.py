"""`mend_dataset` changes what has one safe answer, copies the rest bit by bit, and never touches the original."""

import json

import nibabel as nib
import numpy as np
import pytest
from msd_shell import tree

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.checking.check import check_dataset
from medsegdiff_cli.checking.mending import mend_dataset
from medsegdiff_cli.errors import UsageError

SHAPE_XYZ = (6, 5, 4)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture
def folder(tmp_path):
    """Three labelled cases of one class."""
    root = tmp_path / "Dataset009_Mask"
    for index, case in enumerate("abc"):
        voxels = np.random.default_rng(index).integers(-1000, 1000, SHAPE_XYZ).astype(np.int16)
        save(root / f"imagesTr/{case}_0000.nii.gz", voxels)
        save(root / f"labelsTr/{case}.nii.gz", mask())
    write_info(root)
    return root


def mask(value=1, dtype=np.uint8):
    label = np.zeros(SHAPE_XYZ, dtype)
    label[2:4, 1:3, 1:3] = value
    return label


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_info(root, **changes):
    info = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 3}
    (root / "dataset.json").write_text(json.dumps({**info, "file_ending": ".nii.gz", **changes}))


def mended(folder):
    """Mend, and prove that the original stays as it was."""
    before = tree(folder)
    output = folder.parent / "Dataset010_Mended"
    changes = mend_dataset(open_dataset(folder), output)
    assert tree(folder) == before
    return output, {change.file: change.what for change in changes}


def voxels_of(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.get_data_dtype()


def test_a_sound_dataset_is_copied_bit_by_bit(folder):
    output, changes = mended(folder)
    assert changes == {}
    before, after = tree(folder), tree(output)
    assert {name: content for name, content in after.items() if name != "dataset.json"} == {
        name: content for name, content in before.items() if name != "dataset.json"
    }
    assert json.loads(after["dataset.json"]) == json.loads(before["dataset.json"])


@pytest.mark.fault("F82")
def test_white_becomes_the_one_class_and_is_counted(folder):
    save(folder / "labelsTr/a.nii.gz", mask(255))
    output, changes = mended(folder)
    assert changes == {"labelsTr/a.nii.gz": "value 255 became 1 (8 voxels)"}
    found, dtype = voxels_of(output / "labelsTr/a.nii.gz")
    assert np.array_equal(found, mask())
    assert dtype == np.uint8
    assert check_dataset(open_dataset(output)).problems == ()


@pytest.mark.fault("F82")
@pytest.mark.parametrize("label", [mask(7), np.where(np.arange(5)[:, None] > 1, 255, 1) * mask()])
def test_values_that_could_mean_anything_are_left_and_named(folder, label):
    save(folder / "labelsTr/a.nii.gz", label.astype(np.uint8))
    output, changes = mended(folder)
    assert changes == {}
    assert [p.code for p in check_dataset(open_dataset(output)).problems] == ["undeclared-values"]


def test_the_vendors_values_become_the_declared_ones(folder):
    write_info(folder, labels={"background": 0, "a": 1, "b": 2}, source_label_values={"a": 205, "b": 420})
    label = np.zeros(SHAPE_XYZ, np.uint16)
    label[0], label[1] = 205, 420
    for case in "abc":
        save(folder / f"labelsTr/{case}.nii.gz", label)
    output, _ = mended(folder)
    found, _ = voxels_of(output / "labelsTr/b.nii.gz")
    assert np.array_equal(found, np.array([1, 2, 0, 0, 0, 0])[:, None, None] * np.ones(SHAPE_XYZ))


@pytest.mark.fault("F81")
def test_floating_point_becomes_whole_numbers_and_halves_stay(folder):
    save(folder / "labelsTr/a.nii.gz", mask(0.9999, np.float32))
    save(folder / "labelsTr/b.nii.gz", mask(0.5, np.float32))
    output, changes = mended(folder)
    assert changes == {"labelsTr/a.nii.gz": "floating point became whole numbers"}
    assert voxels_of(output / "labelsTr/a.nii.gz")[1] == np.uint8
    assert [(p.code, p.case) for p in check_dataset(open_dataset(output)).problems] == [("label-not-integer", "b")]


@pytest.mark.fault("F30")
def test_a_label_within_a_tenth_of_a_voxel_takes_the_images_grid(folder):
    moved = AFFINE.copy()
    moved[0, 3] = 0.05
    save(folder / "labelsTr/a.nii.gz", mask(), moved)
    moved[0, 3] = 0.5
    save(folder / "labelsTr/b.nii.gz", mask(), moved)
    output, changes = mended(folder)
    assert list(changes) == ["labelsTr/a.nii.gz"]
    assert np.array_equal(nib.load(output / "labelsTr/a.nii.gz").affine, AFFINE)
    assert [(p.code, p.case) for p in check_dataset(open_dataset(output)).problems] == [("geometry", "b")]


@pytest.mark.fault("F90")
def test_counts_and_names_are_set_right_and_hidden_files_stay_behind(folder):
    write_info(folder, numTraining=7, groups={"a": "p1", "gone": "p2"})
    (folder / "imagesTr/b_0000.nii.gz").rename(folder / "imagesTr/b.NII.GZ")
    (folder / "labelsTr/c.nii.gz").rename(folder / "labelsTr/c_0000.nii.gz")
    (folder / "imagesTr/._a_0000.nii.gz").write_bytes(b"resource fork")
    (folder / "README.txt").write_text("kept")
    output, changes = mended(folder)
    assert changes["imagesTr/b.NII.GZ"] == "is now called imagesTr/b_0000.nii.gz"
    assert changes["labelsTr/c_0000.nii.gz"] == "is now called labelsTr/c.nii.gz"
    info = json.loads((output / "dataset.json").read_text())
    assert info["numTraining"] == 3
    assert info["groups"] == {"a": "p1"}
    assert sorted(tree(output)) == [
        "README.txt",
        "dataset.json",
        *(f"imagesTr/{case}_0000.nii.gz" for case in "abc"),
        *(f"labelsTr/{case}.nii.gz" for case in "abc"),
    ]
    assert check_dataset(open_dataset(output)).problems == ()


def test_a_damaged_file_is_copied_and_stays_named(folder):
    path = folder / "labelsTr/a.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    output, changes = mended(folder)
    assert changes == {}
    assert [p.code for p in check_dataset(open_dataset(output)).problems] == ["unreadable"]


@pytest.mark.parametrize("place", [".", "inside", "..", "../Dataset011_There"])
def test_nothing_is_mended_in_place_or_over_something(folder, place):
    (folder.parent / "Dataset011_There").mkdir()
    (folder.parent / "Dataset011_There" / "file").touch()
    before = tree(folder.parent)
    with pytest.raises(UsageError, match=r"original|exists"):
        mend_dataset(open_dataset(folder), folder / place)
    assert tree(folder.parent) == before
