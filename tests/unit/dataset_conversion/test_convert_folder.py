"""Folders of photographs and volumes, with the oddities of real names and masks. PIL and nibabel are the oracles."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image as Pil

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options


def convert(tmp_path, **options):
    destination = tmp_path / "raw" / "Dataset001_Out"
    report = convert_dataset("folder", tmp_path / "in", destination, parse_options(**options))
    return destination, report, json.loads((destination / "dataset.json").read_text())


def save(tmp_path, name, array, mode=None):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Pil.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def grey(seed, shape=(12, 10)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colour(seed):
    return grey(seed, (12, 10, 3))


def mask(value=255, shape=(12, 10)):
    array = np.zeros(shape, dtype=np.uint8)
    array[3:7, 2:6] = value
    return array


def read(path):
    return np.asarray(Pil.open(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_colour_photograph_stays_one_file_of_three_channels(tmp_path):
    save(tmp_path, "a.png", colour(1))
    save(tmp_path, "a_mask.png", mask())
    out, report, info = convert(tmp_path, label_suffix="_mask")
    assert info["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert names(out / "imagesTr") == ["a_0000.png"]
    np.testing.assert_array_equal(read(out / "imagesTr" / "a_0000.png"), colour(1))
    np.testing.assert_array_equal(read(out / "labelsTr" / "a.png"), mask(1))
    assert (report.n_training, report.n_test, report.n_unlabelled) == (1, 0, 0)


def test_grey_saved_as_colour_becomes_one_channel(tmp_path):
    save(tmp_path, "Images/SC-N-03-IM-0001-0280.dcm.png", grey(1), "RGB")
    save(tmp_path, "Labels/SC-N-03-IM-0001-0280.dcm.png", mask(), "RGB")
    out, _, info = convert(tmp_path, images="Images/*.png", labels="Labels/*.png", group_regex="(SC-.*)-IM")
    assert info["channel_names"] == {"0": "image"}
    assert info["groups"] == {"SC-N-03-IM-0001-0280": "SC-N-03"}
    np.testing.assert_array_equal(read(out / "imagesTr" / "SC-N-03-IM-0001-0280_0000.png"), grey(1))
    np.testing.assert_array_equal(read(out / "labelsTr" / "SC-N-03-IM-0001-0280.png"), mask(1))


def test_one_coloured_image_makes_all_of_them_coloured(tmp_path):
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "b.png", colour(2))
    out, _, info = convert(tmp_path)
    assert len(info["channel_names"]) == 3
    np.testing.assert_array_equal(read(out / "imagesUn" / "a_0000.png"), np.stack([grey(1)] * 3, axis=-1))


def test_jpg_and_bmp_become_png_with_the_very_same_pixels(tmp_path):
    save(tmp_path, "a.jpg", grey(1))
    save(tmp_path, "b.bmp", grey(2))
    out, _, info = convert(tmp_path)
    assert info["file_ending"] == ".png"
    np.testing.assert_array_equal(read(out / "imagesUn" / "b_0000.png"), grey(2))
    # Two JPEG decoders may round differently by one grey level (and upsample colours differently: hence grey).
    decoded = read(tmp_path / "in" / "a.jpg").astype(int)
    assert np.abs(read(out / "imagesUn" / "a_0000.png").astype(int) - decoded).max() <= 1


def test_images_without_a_label_become_unlabelled_and_alone_are_legal(tmp_path):
    save(tmp_path, "a.png", grey(1))
    out, report, info = convert(tmp_path)
    assert (info["numTraining"], report.n_unlabelled) == (0, 1)
    assert names(out / "imagesUn") == ["a_0000.png"]
    assert not (out / "labelsTr").exists()


def test_one_bit_masks_of_two_observers_are_kept_apart(tmp_path):
    for case in ("Image_01L", "Image_01R"):
        save(tmp_path, f"{case}.jpg", colour(1))
        save(tmp_path, f"{case}_1stHO.png", mask(), "1")
        save(tmp_path, f"{case}_2ndHO.png", mask()[::-1].copy(), "1")
    out, _, info = convert(
        tmp_path, images="*.jpg", labels="*_1stHO.png", label_suffix="_1stHO", extra_labels=["second=_2ndHO"]
    )
    assert info["extra_labels"] == ["second"]
    np.testing.assert_array_equal(read(out / "labelsTr" / "Image_01R.png"), mask(1))
    np.testing.assert_array_equal(read(out / "labelsTr_second" / "Image_01R.png"), mask(1)[::-1])


def test_greys_between_0_and_255_are_refused_with_their_number_and_the_remedy(tmp_path):
    blurred = mask()
    blurred[3, 2:5] = (7, 120, 200)
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", blurred)
    for label_map in ([], ["255:lung"]):
        with pytest.raises(InputDataError, match=r"3 label values .* 3 voxels .*\n.*\n.*--threshold 127"):
            convert(tmp_path, label_suffix="_mask", label_map=label_map)
    assert names(tmp_path / "raw") == [], "nothing is left behind"


def test_a_threshold_makes_greys_foreground_above_it_only(tmp_path):
    blurred = mask()
    blurred[3, 2:5] = (7, 127, 128)
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", blurred)
    out, _, info = convert(tmp_path, label_suffix="_mask", label_map=["255:lung"], threshold=127)
    assert info["labels"] == {"background": 0, "lung": 1}
    assert info["source_label_values"] == {"lung": 255}
    expected = mask(1)
    expected[3, 2:4] = 0
    np.testing.assert_array_equal(read(out / "labelsTr" / "a.png"), expected)


def test_several_values_are_mapped_by_name_to_consecutive_classes_with_ignore_last(tmp_path):
    label = mask(128)
    label[0, :4] = (50, 64, 255, 0)
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", label)
    out, _, info = convert(tmp_path, label_suffix="_mask", label_map=["128:disc", "50:cup", "64:cup", "255:ignore"])
    assert info["labels"] == {"background": 0, "cup": 1, "disc": 2, "ignore": 3}
    assert info["source_label_values"] == {"cup": [50, 64], "disc": 128}
    assert read(out / "labelsTr" / "a.png")[0, :4].tolist() == [1, 1, 3, 0]
    assert read(out / "labelsTr" / "a.png")[4, 3] == 2


def test_labels_that_nobody_named_are_called_by_their_values(tmp_path):
    label = mask(2)
    label[0, :3] = (1, 5, 0)
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", label)
    _, _, info = convert(tmp_path, label_suffix="_mask")
    assert info["labels"] == {"background": 0, "label_1": 1, "label_2": 2, "label_5": 3}


def six_cases(tmp_path):
    for patient in "ABC":
        for view in "12":
            save(tmp_path, f"{patient}_{view}.png", grey(ord(patient) + int(view)))
            save(tmp_path, f"{patient}_{view}_mask.png", mask())
    save(tmp_path, "A_3.png", grey(99))


def test_a_test_set_takes_whole_patients_and_their_unlabelled_images_too(tmp_path):
    six_cases(tmp_path)
    out, report, info = convert(tmp_path, label_suffix="_mask", group_regex="^([A-C])_", test_count=1, seed=2)
    test = {info["groups"][name[: -len("_0000.png")]] for name in names(out / "imagesTs")}
    others = {info["groups"][n[:-9]] for part in ("Tr", "Un") for n in names(out / f"images{part}")}
    assert len(test) == 1
    assert test.isdisjoint(others)
    assert report.n_test_labelled == 2, "one case was asked for, the patient has two"
    assert names(out / "labelsTs") == [f"{patient}_{view}.png" for patient in test for view in "12"]


def test_the_seed_alone_decides_which_cases_are_set_aside(tmp_path):
    six_cases(tmp_path)
    chosen = []
    for seed in (0, 0, 1, 2, 3):
        out, _, _ = convert(tmp_path, label_suffix="_mask", test_count=3, seed=seed, overwrite=True)
        chosen.append(tuple(names(out / "labelsTs")))
    assert all(len(cases) == 3 for cases in chosen)
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_a_test_list_may_name_cases_files_or_groups(tmp_path):
    six_cases(tmp_path)
    listing = tmp_path / "test.txt"
    listing.write_text("# test cases\nB_1\nC_2.png\n\n")
    out, _, _ = convert(tmp_path, label_suffix="_mask", test_list=listing)
    assert names(out / "labelsTs") == ["B_1.png", "C_2.png"]
    listing.write_text("B\n")
    out, _, _ = convert(tmp_path, label_suffix="_mask", group_regex="^([A-C])_", test_list=listing, overwrite=True)
    assert names(out / "labelsTs") == ["B_1.png", "B_2.png"]
    listing.write_text("B_1x\n")
    with pytest.raises(UsageError, match="did you mean 'B_1'"):
        convert(tmp_path, label_suffix="_mask", test_list=listing, overwrite=True)


def test_more_test_cases_than_labels_are_refused(tmp_path):
    six_cases(tmp_path)
    with pytest.raises(UsageError, match="6 are labelled"):
        convert(tmp_path, label_suffix="_mask", test_count=6)


def test_a_label_without_an_image_is_refused(tmp_path):
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "masks/b.png", mask())
    save(tmp_path, "c.png", grey(2))
    with pytest.raises(InputDataError, match=r"1 labels belong to no image: b\.png"):
        convert(tmp_path, images="*.png", labels="masks/*.png")


def test_equal_names_in_patient_folders_are_told_apart_by_the_folder(tmp_path):
    for patient in ("p1", "p2"):
        save(tmp_path, f"{patient}/image.png", grey(int(patient[1])))
        save(tmp_path, f"{patient}/mask.png", mask())
    out, _, _ = convert(tmp_path, images="*/image.png", labels="*/mask.png")
    assert names(out / "labelsTr") == ["p1_image.png", "p2_image.png"]
    np.testing.assert_array_equal(read(out / "imagesTr" / "p2_image_0000.png"), grey(2))


def test_names_become_safe_and_the_report_says_so(tmp_path):
    save(tmp_path, "Müller, Øyvind (1).png", grey(1))
    out, report, _ = convert(tmp_path)
    assert names(out / "imagesUn") == ["Muller_yvind_1__0000.png"]
    assert "1 cases renamed" in report.notes[0]


def test_hidden_and_foreign_files_are_left_out(tmp_path):
    save(tmp_path, "a.png", grey(1))
    (tmp_path / "in" / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "in" / "notes.txt").write_text("x")
    out, _, _ = convert(tmp_path)
    assert names(out / "imagesUn") == ["a_0000.png"]


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", mask()[:-1])
    with pytest.raises(InputDataError, match=r"shape \(11, 10\) does not fit the image's \(12, 10\)"):
        convert(tmp_path, label_suffix="_mask")


def volume(tmp_path, name, array, shift_mm=0.0):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize(("shift_mm", "aligned"), [(0.0005, ()), (0.05, ("a",))])
def test_a_label_beside_its_image_by_less_than_a_tenth_of_a_voxel_gets_the_images_grid(tmp_path, shift_mm, aligned):
    volume(tmp_path, "img/a.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    volume(tmp_path, "lab/a.nii.gz", np.eye(4, 5, dtype=np.uint8)[np.newaxis].repeat(3, 0), shift_mm)
    out, report, info = convert(tmp_path, images="img/*", labels="lab/*")
    assert report.aligned == aligned
    assert info["file_ending"] == ".nii.gz"
    image, label = nib.load(out / "imagesTr" / "a_0000.nii.gz"), nib.load(out / "labelsTr" / "a.nii.gz")
    np.testing.assert_array_equal(image.affine, label.affine)
    assert label.get_data_dtype() == np.uint8


def test_a_label_further_away_is_refused_with_the_distance(tmp_path):
    volume(tmp_path, "img/a.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    volume(tmp_path, "lab/a.nii.gz", np.ones((3, 4, 5), dtype=np.uint8), 0.11)
    with pytest.raises(InputDataError, match=r"0\.11 mm away"):
        convert(tmp_path, images="img/*", labels="lab/*")


def test_every_bad_file_is_named_at_once(tmp_path):
    for case in "abc":
        save(tmp_path, f"{case}.png", grey(1))
    for case in "ab":
        path = tmp_path / "in" / f"{case}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputDataError, match=r"2 of 3 cases cannot be used.*\n.*a\.png(.*\n)+.*b\.png"):
        convert(tmp_path)
    assert names(tmp_path / "raw") == []


def test_photographs_and_volumes_do_not_mix(tmp_path):
    save(tmp_path, "a.png", grey(1))
    volume(tmp_path, "b.nii.gz", np.zeros((3, 4, 5), dtype=np.int16))
    with pytest.raises(InputDataError, match="photographs and volumes"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"images": "*.tif"}, "no image matches"),
        ({"label_map": ["255:lung"]}, "no labels"),
        ({"label_suffix": "_nothing"}, "no label file ends with '_nothing'"),
        ({"label_suffix": "_mask", "threshold": 5, "label_map": ["1:a", "2:b"]}, "one class"),
        ({"label_suffix": "_mask", "group_regex": "("}, "no regular expression"),
        ({"label_suffix": "_mask", "group_regex": "zzz"}, "'zzz' is not in"),
        ({"label_suffix": "_mask", "file_ending": ".jpg"}, "cannot be used"),
        ({"label_suffix": "_mask", "extra_labels": ["second=_mask"]}, "share one suffix"),
    ],
)
def test_options_that_match_nothing_or_contradict_are_usage_errors(tmp_path, options, match):
    save(tmp_path, "a.png", grey(1))
    save(tmp_path, "a_mask.png", mask())
    with pytest.raises(UsageError, match=match):
        convert(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "array", "written_as"),
    [
        ("a.nrrd", np.arange(60, dtype=np.int16).reshape(3, 4, 5), ".nii.gz"),
        ("a.mha", np.arange(60, dtype=np.float32).reshape(3, 4, 5), ".nii.gz"),
        ("a.tif", np.arange(60, dtype=np.uint16).reshape(3, 4, 5), ".nii.gz"),
        ("a.tif", 500 * np.arange(60, dtype=np.uint16).reshape(6, 10), ".png"),
        ("a.tif", np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10), ".tif"),
        ("a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), ".nii.gz"),
    ],
)
def test_every_format_keeps_its_values_in_the_ending_that_can_hold_them(tmp_path, name, array, written_as):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "in" / name))
    out, _, info = convert(tmp_path)
    assert info["file_ending"] == written_as
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "imagesUn" / f"a_0000{written_as}")))
    np.testing.assert_array_equal(written, array)


def test_a_folder_without_any_image_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputDataError, match="holds no image"):
        convert(tmp_path)
