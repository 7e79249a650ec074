"""Phantoms: seeded, labelled, readable by `msd convert folder`."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.imaging.reading import read_image, read_label
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.phantoms import CLASSES, PhantomSettings, make_phantom, write_phantoms

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
