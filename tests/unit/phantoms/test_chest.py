"""The chest phantom: geometry of its label, seeds, and what it looks like in numbers."""

import numpy as np
import pytest
from scipy import ndimage

from medsegdiff_cli.phantoms.chest import draw_anatomy, draw_chest


@pytest.fixture(scope="module")
def chests():
    return [draw_chest(index, seed=11) for index in range(60)]


def test_every_chest_has_two_lungs_one_on_each_side(chests):
    for tissue, label in chests:
        parts, n_parts = ndimage.label(label)
        assert (tissue.shape, label.dtype, n_parts) == ((64, 64), np.uint8, 2)
        assert set(np.unique(label)) == {0, 1}
        assert not label[:, 31:33].any()
        assert [len(np.unique(parts[:, half])) for half in (slice(0, 32), slice(32, 64))] == [2, 2]


def test_lungs_are_inside_the_trunk(chests):
    for tissue, label in chests:
        air, _ = ndimage.label(tissue < 0.1)
        outside = np.isin(air, np.unique(np.concatenate([air[:, 0], air[:, -1]]))) & (air > 0)
        assert outside.any()
        assert not (ndimage.binary_dilation(outside) & (label > 0)).any()
        edges = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
        assert not edges.any()


def test_lung_areas_are_those_of_the_ellipses_less_the_heart():
    for index in range(20):
        _, label = draw_chest(index, seed=3, shape=(300, 300))
        anatomy = draw_anatomy(np.random.default_rng([3, index]))
        expected = [lung.area for lung in anatomy.lungs]
        left, right = label[:, :150].mean() * 2, label[:, 150:].mean() * 2
        # The heart lies to the image's right: it hides some of the right lung and next to none of the left one.
        assert left == pytest.approx(expected[0], rel=0.06)
        assert 0.6 * expected[1] < right < 1.01 * expected[1]


def test_people_differ_in_size_place_and_opacity(chests):
    areas = np.array([label.mean() for _, label in chests])
    heights = [np.flatnonzero(label.any(axis=1)).mean() for _, label in chests]
    opaque = [draw_anatomy(np.random.default_rng([11, index])).opacity is not None for index in range(60)]
    assert areas.std() / areas.mean() > 0.08
    assert np.std(heights) > 1.0
    assert 0.1 < np.mean(opaque) < 0.5


def test_lungs_are_darker_than_the_tissue_around_them(chests):
    for tissue, label in chests:
        around = ndimage.binary_dilation(label, iterations=4) & ~ndimage.binary_dilation(label, iterations=1)
        assert tissue[label > 0].mean() < tissue[around].mean() - 0.15
        assert 0 <= tissue.min() < 0.1
        assert 0.6 < tissue.max() <= 1


def test_an_opacity_brightens_a_lung_and_leaves_the_label(chests):
    opaque = [index for index in range(60) if draw_anatomy(np.random.default_rng([11, index])).opacity]
    brightest = [np.percentile(tissue[ndimage.binary_erosion(label, iterations=2)], 99) for tissue, label in chests]
    clear = np.setdiff1d(np.arange(60), opaque)
    assert np.mean(np.take(brightest, opaque)) > np.mean(np.take(brightest, clear)) + 0.05


def test_the_same_index_and_seed_give_the_same_pixels_and_others_do_not():
    tissue, label = draw_chest(4, seed=1)
    again, label_again = draw_chest(4, seed=1)
    assert np.array_equal(tissue, again)
    assert np.array_equal(label, label_again)
    assert not np.array_equal(label, draw_chest(4, seed=2)[1])
    assert not np.array_equal(label, draw_chest(5, seed=1)[1])


def test_the_anatomy_does_not_depend_on_the_number_of_pixels():
    _, coarse = draw_chest(7, shape=(64, 64))
    _, fine = draw_chest(7, shape=(192, 192))
    majority = fine.reshape(64, 3, 64, 3).mean(axis=(1, 3)) > 0.5
    assert 2 * (majority & (coarse > 0)).sum() / (majority.sum() + coarse.sum()) > 0.99


def test_any_shape_can_be_drawn():
    tissue, label = draw_chest(0, shape=(40, 96))
    assert tissue.shape == label.shape == (40, 96)
    assert ndimage.label(label)[1] == 2
