"""Equalising: ranks counted by hand and by numpy's sums, in 2D and 3D."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.normalise import SCHEMES, equalise, normalise_channel, takes_equalised
from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings, forward


def by_histogram(image, bits=8):
    """What the published code does to an image of `bits` bits: the CDF, stretched between its occupied ends."""
    histogram, _ = np.histogram(image, 2**bits, (0, 2**bits))
    cdf = histogram.cumsum()
    occupied = cdf[cdf > 0]
    return np.sqrt((cdf[image] - occupied.min()) / (occupied.max() - occupied.min()))


def test_ranks_are_counted_by_hand():
    # At most 2: 1 voxel; at most 5: 3; at most 9: 4. Without the lowest: 0, 2 and 3 of 3.
    image = np.array([[5, 2], [9, 5]])
    np.testing.assert_allclose(equalise(image), [[2 / 3, 0], [1, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(equalise(image, 0.5), np.sqrt([[2 / 3, 0], [1, 2 / 3]]), rtol=1e-6)


@pytest.mark.parametrize("shape", [(31, 17), (7, 9, 11)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_it_equals_the_histogram_of_an_8_bit_image_whatever_the_dtype(shape, dtype):
    image = np.random.default_rng(0).normal(120, 30, shape).clip(0, 255).astype(np.uint8)
    ours = equalise(image.astype(dtype), 0.5)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, by_histogram(image), atol=1e-6)


def test_different_numbers_of_all_kinds_become_evenly_spaced():
    image = np.array([[-1e30, 1e-30, 0.0], [3.5, 3.5000002, 1e30]], np.float32)
    np.testing.assert_allclose(np.sort(equalise(image), axis=None), np.arange(6) / 5, rtol=1e-6)


@pytest.mark.parametrize("value", [0, 7, -3.5])
def test_a_constant_image_is_0(value):
    for shape in ((4, 5), (3, 4, 5), (1,)):
        assert not equalise(np.full(shape, value), 0.5).any()


def test_an_empty_image_stays_empty():
    assert equalise(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    with pytest.raises(InputDataError, match="not finite"):
        equalise(np.array([1.0, wrong, 2.0]), 0.5)


def test_a_mask_decides_what_is_counted():
    image, mask = np.array([1, 2, 3, 100, 2.5, 0]), np.array([True, True, True, False, False, False])
    # Beyond what was counted: the highest, the lower neighbour's, the lowest.
    np.testing.assert_allclose(equalise(image, mask=mask), [0, 0.5, 1, 1, 0.5, 0])
    np.testing.assert_array_equal(equalise(image, mask=np.zeros(6, bool)), equalise(image))


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (3, 5), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([0.5, 1.0, 2.0]))
def test_order_is_kept_equal_stays_equal_and_monotone_changes_change_nothing(image, gamma):
    ours = equalise(image, gamma)
    assert ((ours >= 0) & (ours <= 1)).all()
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(ours.ravel()[order]) >= 0).all()
    assert len(np.unique(ours)) == len(np.unique(image))
    np.testing.assert_array_equal(equalise(-1024 * -image.astype(np.float64), gamma), ours)


def test_it_comes_after_clipping_and_before_the_scheme():
    image = np.array([0, 10, 20, 1000], np.uint16)
    statistics = {"clip_low": 10.0, "clip_high": 20.0, "equalise_gamma": 0.5}
    # Clipped to 10, 10, 20, 20: ranks 0 and 1.
    ours = normalise_channel(image, "rescale_minus1_1", statistics=statistics)
    assert ours.tolist() == [-1, -1, 1, 1]
    ranks = normalise_channel(image, "none", statistics={"equalise_gamma": 0.5})
    np.testing.assert_allclose(ranks, np.sqrt([0, 1 / 3, 2 / 3, 1]), rtol=1e-6)
    zscore = normalise_channel(image, "zscore", statistics={"equalise_gamma": 1.0})
    assert (abs(zscore.mean()) < 1e-6, round(float(zscore.std()), 5)) == (True, 1)


def test_schemes_that_speak_of_intensities_are_refused():
    refused = {scheme for scheme in SCHEMES if not takes_equalised(scheme)}
    assert refused == {"ct", "zscore_dataset", "rgb_0_1"}
    given_ = {"mean": 0, "std": 1, "percentile_00_5": 0, "percentile_99_5": 1, "equalise_gamma": 0.5}
    for scheme in refused:
        with pytest.raises(UsageError, match=f"{scheme}.*replaces by ranks"):
            normalise_channel(np.arange(4), scheme, statistics=given_)


@pytest.mark.parametrize("shape", [(12, 10), (6, 8, 10)])
def test_on_the_way_to_the_grid_each_image_is_equalised_and_grey_becomes_three_channels(shape):
    array = np.random.default_rng(1).integers(0, 4096, (1, *shape)).astype(np.uint16)
    image = Image(array=array, geometry=Geometry.plain(shape, (1.0,) * len(shape)))
    channel = ChannelScheme(name="x", scheme="rescale_minus1_1", statistics={"equalise_gamma": 0.5})
    settings_ = TransformSettings(
        transpose=tuple(range(len(shape))),
        crop="none",
        channels=(channel,),
        geometry="resize",
        size_voxels=shape,
        channel_copies=3,
    )
    moved = forward(image, settings_).image
    assert moved.shape == (3, *shape)
    assert moved.flags.c_contiguous
    for copy in moved:
        np.testing.assert_allclose(copy, 2 * by_histogram(array[0], 12) - 1, atol=1e-5)
