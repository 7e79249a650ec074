"""Boxes: cutting out and putting back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medsegdiff_cli.imaging.crop import (
    box_shape,
    centre_crop_box,
    crop,
    mask_bounding_box,
    nonzero_bounding_box,
    nonzero_mask,
    paste,
    whole_box,
)


def test_the_box_holds_what_is_nonzero_in_any_channel():
    image = np.zeros((2, 6, 8))
    image[0, 2, 3] = 5
    image[1, 4, 6] = -1
    assert nonzero_bounding_box(image) == (slice(2, 5), slice(3, 7))


def test_an_image_of_zeros_and_an_empty_mask_give_the_whole_image():
    assert nonzero_bounding_box(np.zeros((1, 3, 4, 5))) == (slice(0, 3), slice(0, 4), slice(0, 5))
    assert mask_bounding_box(np.zeros((3, 4), bool)) == (slice(0, 3), slice(0, 4))


def test_a_ring_is_filled_but_an_open_ring_is_not():
    ring = np.zeros((1, 5, 5))
    ring[0, 1:4, 1:4] = 1
    ring[0, 2, 2] = 0
    assert nonzero_mask(ring)[2, 2]
    ring[0, 1, 2] = 0
    assert not nonzero_mask(ring)[2, 2]


@pytest.mark.parametrize("shape", [(30, 31), (12, 13, 14)])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_holes_are_filled_as_by_scipy(shape, density):
    noise = np.random.default_rng(0).random((1, *shape)) < density
    np.testing.assert_array_equal(nonzero_mask(noise), ndimage.binary_fill_holes(noise[0]))


def test_the_box_of_the_filled_mask_is_the_box_of_the_image():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1, 40, 40)), 2) > 0.1
    noise[:, :3] = False
    assert mask_bounding_box(nonzero_mask(noise)) == nonzero_bounding_box(noise)


def test_the_centre_box_splits_what_is_cut_and_what_is_padded():
    assert centre_crop_box((10, 5), (4, 8)) == (slice(3, 7), slice(-1, 7))
    assert centre_crop_box((5, 4), (5, 4)) == whole_box((5, 4))


def test_padding_beyond_the_image_holds_the_fill():
    padded = crop(np.arange(3)[None], (slice(-1, 5),), fill=9)
    assert padded.tolist() == [[9, 0, 1, 2, 9, 9]]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 8), st.integers(1, 9)), min_size=2, max_size=3),
    st.integers(1, 2),
)
def test_paste_undoes_crop_inside_the_box_and_fills_outside(axes, n_channels):
    shape = tuple(n for n, _, _ in axes)
    box = tuple(slice(start, start + size) for _, start, size in axes)
    array = np.random.default_rng(0).integers(1, 100, (n_channels, *shape))
    cropped = crop(array, box, fill=-1)
    assert cropped.shape == (n_channels, *box_shape(box))
    restored = paste(cropped, box, shape, fill=-7)
    inside = np.zeros(shape, bool)
    inside[tuple(slice(max(b.start, 0), max(b.stop, 0)) for b in box)] = True
    np.testing.assert_array_equal(restored, np.where(inside, array, -7))


def test_pasting_an_array_that_does_not_fit_its_box_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        paste(np.zeros((1, 3)), (slice(0, 2),), (5,))
