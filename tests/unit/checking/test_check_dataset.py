"""`check_dataset` finds each fault that is put into a sound dataset, and nothing else."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.checking.check import check_dataset

SHAPE_XYZ = (10, 9, 8)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS axes in nibabel's RAS millimetres


@pytest.fixture
def folder(tmp_path):
    """Three training, two test and one unlabelled case, all different, classes 1 and 2 in every label."""
    root = tmp_path / "Dataset009_Sound"
    for index, (part, case) in enumerate(
        [("Tr", "a"), ("Tr", "b"), ("Tr", "c"), ("Ts", "t"), ("Ts", "u"), ("Un", "n")]
    ):
        voxels = np.random.default_rng(index).integers(-1000, 1000, SHAPE_XYZ).astype(np.int16)
        save(root / f"images{part}" / f"{case}_0000.nii.gz", voxels)
        if part != "Un":
            save(root / f"labels{part}" / f"{case}.nii.gz", sound_label())
    write_info(root)
    return root


def sound_label():
    label = np.zeros(SHAPE_XYZ, dtype=np.uint8)
    label[2:4, 2:5, 2:5], label[5:7, 2:5, 2:5] = 1, 2
    return label


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_info(root, **changes):
    info = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(info | changes))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def with_value(value, dtype=np.uint8):
    label = sound_label().astype(dtype)
    label[0, 0, 0] = value
    return label


def moved(millimetres):
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def voxels_of(root, name):
    return np.asarray(nib.load(root / name).dataobj)


def not_finite(root):
    voxels = np.ones(SHAPE_XYZ, dtype=np.float32)
    voxels[1, 1, 1] = np.nan
    save(root / "imagesTr/a_0000.nii.gz", voxels)


def plain_nii_twin(root):
    (root / "imagesTr/a_0000.nii").write_bytes(gzip.decompress((root / "imagesTr/a_0000.nii.gz").read_bytes()))


def flipped(root):
    affine = np.diag([1.0, -1.0, 2.0, 1.0])
    save(root / "imagesTr/a_0000.nii.gz", voxels_of(root, "imagesTr/a_0000.nii.gz"), affine)
    save(root / "labelsTr/a.nii.gz", sound_label(), affine)


def other_channel_grid(root):
    write_info(root, channel_names={"0": "CT", "1": "PET"})
    for part, case in (("Tr", "a"), ("Tr", "b"), ("Tr", "c"), ("Ts", "t"), ("Ts", "u"), ("Un", "n")):
        twin = voxels_of(root, f"images{part}/{case}_0000.nii.gz")
        save(root / f"images{part}/{case}_0001.nii.gz", twin, moved(5.0) if case == "a" else AFFINE)


def no_tumour(root):
    for case in "abc":
        save(root / f"labelsTr/{case}.nii.gz", np.minimum(sound_label(), 1))


def recompressed_copy(root):
    # The bytes differ (another compression level), the image is the same.
    stored = gzip.decompress((root / "imagesTr/a_0000.nii.gz").read_bytes())
    (root / "imagesTs/t_0000.nii.gz").write_bytes(gzip.compress(stored, compresslevel=1))


FAULTS = {
    "damaged image": (lambda r: truncate(r / "imagesTr/a_0000.nii.gz"), "error", "unreadable", "a"),
    "damaged label": (lambda r: truncate(r / "labelsTr/a.nii.gz"), "error", "unreadable", "a"),
    "damaged unlabelled image": (lambda r: truncate(r / "imagesUn/n_0000.nii.gz"), "error", "unreadable", "n"),
    "empty file": (lambda r: (r / "imagesTr/a_0000.nii.gz").write_bytes(b""), "error", "unreadable", "a"),
    "nan": (not_finite, "error", "non-finite", "a"),
    "too few channels": (lambda r: write_info(r, channel_names={"0": "CT", "1": "PET"}), "error", "channel-count", "b"),
    "channel 1 without 0": (
        lambda r: (r / "imagesTr/a_0000.nii.gz").rename(r / "imagesTr/a_0001.nii.gz"),
        "error",
        "channel-missing",
        "a",
    ),
    "no channel number in imagesTs": (
        lambda r: shutil.copy(r / "imagesTs/t_0000.nii.gz", r / "imagesTs/x.nii.gz"),
        "error",
        "channel-number",
        "x",
    ),
    ".nii beside .nii.gz": (plain_nii_twin, "error", "duplicate-case", "a"),
    "another ending": (
        lambda r: shutil.copy(r / "imagesTr/a_0000.nii.gz", r / "imagesTr/z_0000.nrrd"),
        "error",
        "mixed-endings",
        "z",
    ),
    "an ending in capitals": (
        lambda r: shutil.copy(r / "imagesTr/a_0000.nii.gz", r / "imagesTr/z_0000.NII.GZ"),
        "error",
        "mixed-endings",
        "z",
    ),
    "test image in training": (recompressed_copy, "error", "test-leak", "a"),
    "training image twice": (
        lambda r: shutil.copy(r / "imagesTr/a_0000.nii.gz", r / "imagesTr/b_0000.nii.gz"),
        "warning",
        "duplicate-image",
        "a",
    ),
    "patient in training and test": (lambda r: write_info(r, groups={"a": "p1", "t": "p1"}), "error", "group-leak", ""),
    "group of an unknown case": (lambda r: write_info(r, groups={"nobody": "p1"}), "warning", "unknown-case", ""),
    "no label": (lambda r: (r / "labelsTr/a.nii.gz").unlink(), "error", "label-missing", "a"),
    "no image": (
        lambda r: shutil.copy(r / "labelsTr/a.nii.gz", r / "labelsTr/z.nii.gz"),
        "warning",
        "orphan-label",
        "z",
    ),
    "undeclared value": (lambda r: save(r / "labelsTr/a.nii.gz", with_value(255)), "error", "undeclared-values", "a"),
    "float label": (
        lambda r: save(r / "labelsTr/a.nii.gz", sound_label().astype(np.float32)),
        "note",
        "float-label",
        "a",
    ),
    "float label that is rounded": (
        lambda r: save(r / "labelsTr/a.nii.gz", with_value(0.9999, np.float32)),
        "warning",
        "float-label",
        "a",
    ),
    "label of halves": (
        lambda r: save(r / "labelsTr/a.nii.gz", with_value(0.5, np.float32)),
        "error",
        "label-not-integer",
        "a",
    ),
    "empty label": (lambda r: save(r / "labelsTr/a.nii.gz", 0 * sound_label()), "warning", "no-foreground", "a"),
    "a class nobody has": (no_tumour, "error", "class-absent", ""),
    "constant image": (
        lambda r: save(r / "imagesTr/a_0000.nii.gz", np.full(SHAPE_XYZ, -7, np.int16)),
        "warning",
        "constant-image",
        "a",
    ),
    "CT without negative values": (
        lambda r: save(r / "imagesTr/a_0000.nii.gz", np.abs(voxels_of(r, "imagesTr/a_0000.nii.gz"))),
        "warning",
        "ct-not-hounsfield",
        "a",
    ),
    "label of another shape": (lambda r: save(r / "labelsTr/a.nii.gz", sound_label()[:-1]), "error", "shape", "a"),
    "label half a millimetre away": (
        lambda r: save(r / "labelsTr/a.nii.gz", sound_label(), moved(0.5)),
        "error",
        "geometry",
        "a",
    ),
    "label a hundredth of a voxel away": (
        lambda r: save(r / "labelsTr/a.nii.gz", sound_label(), moved(0.01)),
        "note",
        "geometry-rounded",
        "a",
    ),
    "channels apart": (other_channel_grid, "error", "geometry", "a"),
    "wrong numTraining": (lambda r: write_info(r, numTraining=4), "error", "num-training", ""),
    "labels without background": (lambda r: write_info(r, labels={"liver": 1}), "error", "labels-wrong", ""),
    "ignore in between": (
        lambda r: write_info(r, labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 9}),
        "note",
        "ignore-not-last",
        "",
    ),
    "another orientation": (flipped, "warning", "orientation-varies", ""),
    "spacing in micrometres": (
        lambda r: save(
            r / "imagesUn/n_0000.nii.gz", voxels_of(r, "imagesUn/n_0000.nii.gz"), np.diag([-700, -700, 900, 1])
        ),
        "warning",
        "absurd-spacing",
        "n",
    ),
    "an image of two axes": (
        lambda r: save(r / "imagesUn/n_0000.nii.gz", np.arange(-9, 11, dtype=np.int16).reshape(5, 4)),
        "error",
        "mixed-dimensions",
        "",
    ),
    "an undeclared observer": (
        lambda r: shutil.copytree(r / "labelsTr", r / "labelsTr_second"),
        "note",
        "observer-undeclared",
        "",
    ),
    "a text file among the images": (lambda r: (r / "imagesTr/readme.txt").write_text("x"), "note", "foreign-file", ""),
}


FAULT_IDS = {
    "damaged image": "F01",
    "nan": "F19",
    "too few channels": "F85",
    "channel 1 without 0": "F85",
    ".nii beside .nii.gz": "F84",
    "test image in training": "F88",
    "patient in training and test": "F88",
    "no label": "F83",
    "no image": "F83",
    "undeclared value": "F82",
    "float label": "F81",
    "float label that is rounded": "F81",
    "label of halves": "F81",
    "a class nobody has": "F87",
    "constant image": "F20",
    "label of another shape": "F30",
    "label half a millimetre away": "F30",
    "label a hundredth of a voxel away": "F30",
    "channels apart": "F31",
    "another orientation": "F32",
    "spacing in micrometres": "F40",
    "empty file": "F06",
}


def marked(name):
    return pytest.param(name, marks=[pytest.mark.fault(FAULT_IDS[name])] if name in FAULT_IDS else [])


def test_a_sound_dataset_has_no_problem(folder):
    report = check_dataset(open_dataset(folder))
    assert report.problems == ()
    assert report.is_usable
    assert report.n_cases == {"Tr": 3, "Ts": 2, "Un": 1}


@pytest.mark.parametrize("fault", [marked(name) for name in FAULTS])
def test_a_fault_is_found_and_named(folder, fault):
    spoil, severity, code, case = FAULTS[fault]
    spoil(folder)
    problems = check_dataset(open_dataset(folder)).problems
    assert (severity, code, case) in {(p.severity, p.code, p.case) for p in problems}, problems
    consequences = {"channel-missing": {"channel-count"}}.get(code, set())
    others = {p.code for p in problems if p.severity == "error"} - {code} - consequences
    assert others == set(), problems


def test_all_faults_of_all_cases_stand_in_one_report(folder):
    truncate(folder / "imagesTr/a_0000.nii.gz")
    save(folder / "labelsTr/b.nii.gz", with_value(7))
    save(folder / "labelsTr/c.nii.gz", sound_label()[:-1])
    report = check_dataset(open_dataset(folder), workers=3)
    assert [(p.code, p.case) for p in report.problems if p.severity == "error"] == [
        ("shape", "c"),
        ("undeclared-values", "b"),
        ("unreadable", "a"),
    ]
    assert not report.is_usable
    assert "7 (1x)" in next(p.message for p in report.problems if p.code == "undeclared-values")


def test_the_report_is_json_and_does_not_depend_on_the_number_of_workers(folder):
    save(folder / "labelsTr/b.nii.gz", with_value(7))
    seen = []
    alone = check_dataset(open_dataset(folder), workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    assert json.dumps(alone.to_json()) == json.dumps(check_dataset(open_dataset(folder), workers=4).to_json())
    assert alone.to_json()["counts"] == {"errors": 1, "warnings": 0, "notes": 0}


def test_values_like_205_and_420_are_fine_here_and_noted_for_nnunet(folder):
    for path in [*folder.glob("labelsTr/*"), *folder.glob("labelsTs/*")]:
        save(path, np.array([0, 205, 420], dtype=np.uint16)[sound_label()])
    write_info(folder, labels={"background": 0, "liver": 205, "tumour": 420})
    assert [p.code for p in check_dataset(open_dataset(folder)).problems] == ["labels-not-consecutive"]


@pytest.mark.fault("F88")
def test_an_overlap_of_test_and_unlabelled_images_can_be_declared(folder):
    shutil.copy(folder / "imagesTs/t_0000.nii.gz", folder / "imagesUn/n_0000.nii.gz")
    assert [p.severity for p in check_dataset(open_dataset(folder)).problems] == ["error"]
    write_info(folder, unlabelled_test_overlap="allowed")
    assert [p.severity for p in check_dataset(open_dataset(folder)).problems] == ["note"]


@pytest.mark.fault("F90")
def test_hidden_files_are_passed_over(folder):
    (folder / "imagesTr/._a_0000.nii.gz").write_bytes(b"resource fork")
    (folder / "labelsTr/._a.nii.gz").write_bytes(b"resource fork")
    assert check_dataset(open_dataset(folder)).problems == ()


def test_a_dataset_of_unlabelled_images_only_is_legal(folder):
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        shutil.rmtree(folder / name)
    write_info(folder, numTraining=0)
    assert check_dataset(open_dataset(folder)).problems == ()


@pytest.mark.fault("F90")
def test_an_empty_dataset_is_an_error(folder):
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUn"):
        shutil.rmtree(folder / name)
    write_info(folder, numTraining=0)
    assert [p.code for p in check_dataset(open_dataset(folder)).problems] == ["no-cases"]
