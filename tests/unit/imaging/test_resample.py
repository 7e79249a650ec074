"""Resampling against skimage, scipy and batchgenerators, none of which it uses in the same way."""

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from medsegdiff_cli.imaging.resample import (
    resize_cubic,
    resize_image,
    resize_labels,
    resize_linear,
    resize_nearest,
    should_separate_z,
)

SHAPES = [
    ((20, 30), (33, 17)),
    ((1, 9), (4, 3)),
    ((300, 5), (120, 9)),  # longer than the band of the spline
    ((131, 70), (64, 201)),
    ((7, 9, 11), (14, 6, 11)),
    ((2, 100, 65), (5, 99, 140)),
]


def _by_skimage(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return np.stack([resize(c.astype(float), shape, order, mode="edge", anti_aliasing=False) for c in array])


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(40, 300, shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize(("order", "resize_ours"), [(3, resize_cubic), (1, resize_linear), (0, resize_nearest)])
def test_resizing_equals_skimage_within_a_millionth_of_the_range(shape, new_shape, order, resize_ours):
    array = _noise((2, *shape))
    difference = np.abs(resize_ours(array, new_shape) - _by_skimage(array, new_shape, order)).max()
    assert difference <= 1e-6 * np.ptp(array)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=2, max_size=2),
    st.sampled_from([(3, resize_cubic), (1, resize_linear), (0, resize_nearest)]),
    st.integers(0, 99),
)
def test_resizing_equals_skimage_for_any_shape(sizes, rule, seed):
    shape, new_shape = zip(*sizes, strict=True)
    order, resize_ours = rule
    array = _noise((1, *shape), seed)
    difference = np.abs(resize_ours(array, new_shape) - _by_skimage(array, new_shape, order)).max()
    assert difference <= 1e-6 * max(np.ptp(array), 300)


def test_cubic_output_stays_within_the_range_of_its_own_channel():
    step = np.zeros((2, 20, 20), np.float32)
    step[0, 10:] = 1
    step[1, 10:] = -5
    resized = resize_cubic(step, (47, 47))
    assert (resized[0].min(), resized[0].max()) == (0, 1)
    assert (resized[1].min(), resized[1].max()) == (-5, 0)


def test_integers_are_resized_as_the_real_numbers_they_are():
    array = np.random.default_rng(0).integers(-1000, 3000, (1, 12, 13)).astype(np.int16)
    np.testing.assert_allclose(resize_cubic(array, (20, 9)), _by_skimage(array, (20, 9), 3), atol=4000 * 1e-6)


def test_nearest_keeps_the_dtype_and_the_input_is_never_changed():
    labels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    before = labels.copy()
    resized = resize_nearest(labels, (6, 4))
    assert resized.dtype == np.uint8
    resized[:] = 99
    resize_nearest(labels, (3, 4))[:] = 99
    np.testing.assert_array_equal(labels, before)


@pytest.mark.fault("F37")
def test_an_unchanged_shape_leaves_every_bit_of_an_image():
    array = _noise((1, 6, 7, 8))
    np.testing.assert_array_equal(resize_image(array, (6, 7, 8), nearest_axis=0), array)


@pytest.mark.parametrize(
    ("spacing", "new_spacing", "axis"),
    [
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 5.0), (1.0, 1.0, 1.0), 2),
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), None),  # exactly 3 is not more than 3
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0), None),  # two axes share the maximum
        ((0.24, 1.25, 1.25), (4.0, 1.0, 1.0), None),  # and the current spacing has the say
        ((5.0, 1.0, 1.0), (1.0, 1.0, 9.0), 0),
        ((9.0, 1.0), (9.0, 1.0), None),
    ],
)
def test_the_coarsest_axis_is_separated_when_it_is_more_than_three_times_the_finest(spacing, new_spacing, axis):
    assert should_separate_z(spacing, new_spacing) == axis


def _slicewise_then_nearest(volume: np.ndarray, shape: tuple[int, ...], axis: int, order: int) -> np.ndarray:
    """nnU-Net's separate z: skimage slice by slice, then scipy's map_coordinates of order 0."""
    plane = tuple(m for a, m in enumerate(shape) if a != axis)
    slices = [
        resize(s.astype(float), plane, order, mode="edge", anti_aliasing=False) for s in np.moveaxis(volume, axis, 0)
    ]
    stacked = np.moveaxis(np.stack(slices), 0, axis)
    grid = np.mgrid[tuple(slice(m) for m in shape)].astype(float)
    scale = np.array(stacked.shape).reshape(-1, 1, 1, 1) / np.array(shape).reshape(-1, 1, 1, 1)
    return ndimage.map_coordinates(stacked, scale * (grid + 0.5) - 0.5, order=0, mode="nearest")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new_shape", [(13, 14, 15), (5, 6, 4)])
@pytest.mark.parametrize(("order", "name"), [(3, "cubic"), (1, "linear")])
def test_a_separated_axis_takes_the_nearest_slice_of_slices_resized_one_by_one(axis, new_shape, order, name):
    volume = _noise((8, 9, 10))
    ours = resize_image(volume[None], new_shape, nearest_axis=axis, interpolation=name)[0]
    expected = _slicewise_then_nearest(volume, new_shape, axis, order)
    assert np.abs(ours - expected).max() <= 1e-6 * np.ptp(volume)


def test_nearest_interpolation_of_an_image_invents_no_value():
    volume = _noise((1, 8, 9, 10))
    assert set(np.unique(resize_image(volume, (5, 20, 10), interpolation="nearest"))) <= set(np.unique(volume))


def _support_gap(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return by how much the best label's resized mask exceeds the second's."""
    masks = [
        resize((labels == value).astype(float), shape, 1, mode="edge", anti_aliasing=False)
        for value in range(int(labels.max()) + 2)
    ]
    ranked = np.sort(np.stack(masks), axis=0)
    return ranked[-1] - ranked[-2]


@pytest.mark.parametrize(
    ("shape", "new_shape"),
    [((20, 30), (33, 17)), ((20, 30), (40, 60)), ((20, 30), (10, 15)), ((7, 9, 11), (14, 6, 11)), ((1, 9), (4, 3))],
)
@pytest.mark.parametrize("n_labels", [2, 6])
def test_labels_are_resized_as_by_batchgenerators_apart_from_exact_ties(shape, new_shape, n_labels):
    labels = np.random.default_rng(0).integers(0, n_labels, shape).astype(np.uint8)
    ours, expected = resize_labels(labels, new_shape), resize_segmentation(labels, new_shape, 1)
    differs = ours != expected
    assert (_support_gap(labels, new_shape)[differs] < 1e-9).all()
    assert differs.mean() < 0.01


def test_where_one_label_has_more_than_half_of_the_support_it_wins():
    labels = np.random.default_rng(1).integers(0, 4, (9, 10, 11))
    ours = resize_labels(labels, (12, 21, 8))
    for value in range(4):
        support = resize((labels == value).astype(float), (12, 21, 8), 1, mode="edge", anti_aliasing=False)
        assert (ours[support > 0.5 + 1e-9] == value).all()


def test_a_tie_between_two_labels_goes_to_the_nearer_one_and_never_makes_a_third():
    # Output centres lie at -1/4, 1/4, 3/4, ... of the input: label 2 wins from 1/2 on.
    assert resize_labels(np.array([[0, 2]]), (1, 4)).tolist() == [[0, 0, 2, 2]]
    # The middle output lies at 1/2 exactly, and the nearest voxel is the upper one, whatever its value.
    assert resize_labels(np.array([[0, 2]]), (1, 1)).tolist() == [[2]]
    assert resize_labels(np.array([[2, 0]]), (1, 1)).tolist() == [[0]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_with_a_separated_axis_are_resized_slice_by_slice_then_taken_from_the_nearest(axis):
    labels = np.random.default_rng(2).integers(0, 3, (6, 7, 8)).astype(np.uint8)
    new_shape = (11, 9, 5)
    plane = tuple(m for a, m in enumerate(new_shape) if a != axis)
    slices = np.stack([resize_segmentation(s, plane, 1) for s in np.moveaxis(labels, axis, 0)])
    nearest = resize(slices.astype(float), (new_shape[axis], *plane), 0, mode="edge", anti_aliasing=False)
    expected = np.moveaxis(nearest, 0, axis)
    assert (resize_labels(labels, new_shape, nearest_axis=axis) == expected).mean() > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels_of_any_integer_dtype_and_value_survive(dtype):
    labels = np.zeros((8, 8), dtype)
    labels[2:6, 2:6] = 100
    labels[0, 0] = -1 if dtype is not np.uint8 else 255
    resized = resize_labels(labels, (16, 16))
    assert resized.dtype == dtype
    assert set(np.unique(resized)) == set(np.unique(labels))
    assert (resized[4:12, 4:12] == 100).all()


def test_more_label_values_than_an_integer_map_may_hold_are_refused():
    with pytest.raises(ValueError, match="65535"):
        resize_labels(np.array([[0, 70000]]), (2, 2))
