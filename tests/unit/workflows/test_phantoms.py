"""Phantoms: seeded, labelled, readable by `msd convert folder`; shifted copies of images."""

from dataclasses import replace

import numpy as np
import pytest

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import read_image, read_label
from medsegdiff_cli.imaging.writing import write_image
from medsegdiff_cli.phantoms.chest import draw_chest
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.phantoms import (
    CLASSES,
    ChestCohort,
    PhantomSettings,
    make_chest,
    make_phantom,
    scanner_of,
    shift_images,
    write_blobs,
    write_chests,
    write_phantoms,
    write_volumes,
)

FLAT = PhantomSettings(shape=(48, 40), spacing_mm=None)


@pytest.mark.parametrize("settings", [PhantomSettings(), FLAT], ids=["3D", "2D"])
def test_every_phantom_holds_both_organs_inside_a_body(settings):
    for index in range(8):
        phantom = make_phantom(index, settings)
        shares = np.bincount(phantom.label.ravel(), minlength=3) / phantom.label.size
        assert phantom.image.array.shape == (1, *phantom.label.shape)
        assert set(np.unique(phantom.label)) == {0, *CLASSES}
        assert 0.5 < shares[0] < 0.97
        assert shares[1] > shares[2] > 0.002
        assert phantom.label.ndim == len(settings.shape)


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others():
    first, again = (make_phantom(3, PhantomSettings(seed=5)) for _ in range(2))
    other = make_phantom(3, PhantomSettings(seed=6))
    assert np.array_equal(first.image.array, again.image.array)
    assert np.array_equal(first.label, again.label)
    assert first.label.shape != other.label.shape or not np.array_equal(first.label, other.label)


def test_phantoms_differ_in_shape_and_spacing_from_case_to_case():
    phantoms = [make_phantom(index, PhantomSettings()) for index in range(6)]
    assert phantoms[0].label.shape == (32, 40, 36)
    assert len({phantom.label.shape for phantom in phantoms}) > 3
    assert {phantom.image.geometry.spacing_mm for phantom in phantoms} == {(2.5, 1.25, 1.25), (2.0, 1.25, 1.25)}


def test_difficulty_makes_a_threshold_fail():
    def overlap_of_best_threshold(difficulty):
        phantom = make_phantom(0, PhantomSettings(difficulty=difficulty))
        voxels, truth = phantom.image.array[0], phantom.label > 0
        masks = [voxels > threshold for threshold in range(60, 220, 5)]
        return max(2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks)

    easy, hard = overlap_of_best_threshold(0.0), overlap_of_best_threshold(1.0)
    assert easy > 0.95
    assert hard < 0.75


def test_a_folder_of_phantoms_converts_to_a_dataset(tmp_path):
    source = write_phantoms(tmp_path / "source", PhantomSettings(shape=(12, 16, 16)), labelled=3, unlabelled=1)
    options = parse_options(
        images="images/*.nii.gz", labels="labels/*.nii.gz", label_map=["1:organ", "2:nodule"], test_count=1
    )
    convert_dataset("folder", source, tmp_path / "Dataset001_Phantoms", options)
    dataset = open_dataset(tmp_path / "Dataset001_Phantoms")
    assert [len(dataset.cases(part)) for part in ("Tr", "Ts", "Un")] == [2, 1, 1]
    assert dataset.info.labels == {"background": 0, "organ": 1, "nodule": 2}


def test_photographs_have_no_spacing_and_keep_their_voxels(tmp_path):
    write_phantoms(tmp_path, FLAT, labelled=2, ending=".png")
    image, label = read_image(tmp_path / "images" / "phantom_001.png"), read_label(tmp_path / "labels/phantom_001.png")
    phantom = make_phantom(1, FLAT)
    assert not image.geometry.has_physical_spacing
    assert np.array_equal(image.array, phantom.image.array)
    assert np.array_equal(label.array[0], phantom.label)


COHORT = ChestCohort(train={"A": 4}, unlabelled={"A": 2, "B": 3}, test={"A": 2, "B": 2}, shape=(32, 32), seed=4)


def pixels(path):
    return read_image(path).array


def test_chests_lie_in_one_folder_a_purpose(tmp_path):
    write_chests(tmp_path, COHORT)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(
        [f"{kind}/A_train-000{i}.png" for kind in ("images", "labels") for i in range(4)]
        + ["unlabelled/A_unlabelled-0000.png", "unlabelled/A_unlabelled-0001.png"]
        + [f"unlabelled/B_unlabelled-000{i}.png" for i in range(3)]
        + [f"tests/{s}/{kind}/{s}_test-000{i}.png" for s in "AB" for kind in ("images", "labels") for i in (0, 1)]
        + ["tests.txt"]
    )
    assert scanner_of("B-strong_test-0001") == "B-strong"


def test_written_chests_are_the_drawn_ones_without_spacing(tmp_path):
    write_chests(tmp_path, COHORT)
    image, label = read_image(tmp_path / "images/A_train-0003.png"), read_label(tmp_path / "labels/A_train-0003.png")
    chest = make_chest(3, "A", seed=4, shape=(32, 32))
    assert not image.geometry.has_physical_spacing
    assert image.array.dtype == np.uint8
    assert np.array_equal(image.array, chest.image.array)
    assert np.array_equal(label.array[0], draw_chest(3, 4, (32, 32))[1])


def test_more_cases_and_other_scanners_change_no_pixel(tmp_path):
    write_chests(tmp_path / "few", COHORT)
    more = replace(COHORT, train={"C": 1, "A": 5}, unlabelled={"B": 5}, test={"B": 3})
    write_chests(tmp_path / "more", more)
    for name in ("images/A_train-0003.png", "unlabelled/B_unlabelled-0002.png", "tests/B/images/B_test-0001.png"):
        assert np.array_equal(pixels(tmp_path / "few" / name), pixels(tmp_path / "more" / name))


def test_scanners_test_the_same_persons_and_learn_from_others(tmp_path):
    write_chests(tmp_path, COHORT)
    tests = [pixels(tmp_path / f"tests/{scanner}/labels/{scanner}_test-0001.png") for scanner in "AB"]
    train = [pixels(path) for path in (tmp_path / "labels").iterdir()]
    assert np.array_equal(*tests)
    assert not any(np.array_equal(tests[0], label) for label in train)
    first, second = (pixels(tmp_path / f"unlabelled/{scanner}_unlabelled-0000.png") for scanner in "AB")
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.97


def test_scanners_differ_in_the_same_person():
    a, b, c = (make_chest(0, scanner).image.array.mean() for scanner in "ABC")
    assert b < a < c


def test_all_chests_convert_to_one_dataset(tmp_path):
    source = write_chests(tmp_path / "source", COHORT)
    options = parse_options(
        images="**/*.png", labels="**/labels/*.png", label_map=["1:lung"], test_list=source / "tests.txt"
    )
    convert_dataset("folder", source, tmp_path / "Dataset001_Chests", options)
    dataset = open_dataset(tmp_path / "Dataset001_Chests")
    assert [len(dataset.cases(part)) for part in ("Tr", "Ts", "Un")] == [4, 4, 5]
    assert dataset.info.labels == {"background": 0, "lung": 1}


def test_an_unknown_scanner_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no scanner 'Z'"):
        write_chests(tmp_path, ChestCohort(train={"Z": 1}))


def test_blobs_and_volumes_are_written_with_their_labels(tmp_path):
    write_blobs(tmp_path / "blobs", 2, noise=0.0, first=5)
    write_volumes(tmp_path / "volumes", 2)
    image, label = pixels(tmp_path / "blobs/images/blobs-0006.png"), pixels(tmp_path / "blobs/labels/blobs-0006.png")
    assert image.shape == label.shape == (1, 48, 48)
    assert image[label == 1].mean() - np.median(image) == pytest.approx(255 / 9, abs=4)
    volume = read_image(tmp_path / "volumes/images/volume_001.nii.gz")
    assert volume.geometry.spacing_mm == pytest.approx((3, 1.5, 1.5))
    assert set(np.unique(read_label(tmp_path / "volumes/labels/volume_001.nii.gz").array)) == {0, 1, 2}


def test_shifted_images_keep_names_grids_and_dtypes(tmp_path):
    write_chests(tmp_path / "png", COHORT)
    turned = (0, 1, 0, 1, 0, 0, 0, 0, -1)
    tilted = Geometry(shape=(6, 20, 18), spacing_mm=(3.0, 1.5, 1.2), origin_mm=(5.0, -7.0, 9.0), direction=turned)
    voxels = np.random.default_rng(0).integers(-1000, 1000, (1, 6, 20, 18)).astype(np.int16)
    write_image(tmp_path / "nifti/case.1.nii.gz", Image(array=voxels, geometry=tilted))
    for source in (tmp_path / "png/images", tmp_path / "nifti"):
        written = shift_images(source, tmp_path / "shifted" / source.name, seed=2)
        assert [path.name for path in written] == sorted(path.name for path in source.iterdir())
        for path in written:
            before, after = read_image(source / path.name), read_image(path)
            assert after.geometry == before.geometry
            assert after.array.dtype == before.array.dtype
            assert not np.array_equal(after.array, before.array)


def test_each_image_has_its_own_shift_whatever_else_is_in_the_folder(tmp_path):
    chest = make_chest(0, "A").image
    for name in ("a", "b"):
        write_image(tmp_path / "two" / f"{name}.png", chest)
    write_image(tmp_path / "one" / "b.png", chest)
    shift_images(tmp_path / "two", tmp_path / "two_shifted", seed=0)
    shift_images(tmp_path / "one", tmp_path / "one_shifted", seed=0)
    shift_images(tmp_path / "one", tmp_path / "other_seed", seed=1)
    b = pixels(tmp_path / "two_shifted/b.png")
    assert np.array_equal(b, pixels(tmp_path / "one_shifted/b.png"))
    assert not np.array_equal(b, pixels(tmp_path / "two_shifted/a.png"))
    assert not np.array_equal(b, pixels(tmp_path / "other_seed/b.png"))


def test_grey_photographs_in_colour_stay_grey(tmp_path):
    grey = make_chest(0, "A").image
    write_image(tmp_path / "in/c.png", replace(grey, array=np.repeat(grey.array, 3, axis=0)))
    shift_images(tmp_path / "in", tmp_path / "out", seed=0)
    shifted = pixels(tmp_path / "out/c.png")
    assert np.array_equal(shifted[0], shifted[-1])


def test_a_folder_is_never_shifted_onto_itself_and_an_empty_one_is_refused(tmp_path):
    write_image(tmp_path / "in/c.png", make_chest(0, "A").image)
    with pytest.raises(UsageError, match="replace the images"):
        shift_images(tmp_path / "in", tmp_path / "in", seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="no image"):
        shift_images(tmp_path / "empty", tmp_path / "out", seed=0)
