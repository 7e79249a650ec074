"""Appearance shifts: dtype, range, shape, order and the stated effects."""

import numpy as np
import pytest
from scipy import stats

from medsegdiff_cli.phantoms.appearance import AppearanceShift, apply_shift, draw_shift, shift_appearance
from medsegdiff_cli.phantoms.chest import draw_chest


def random():
    return np.random.default_rng(0)


def radiograph(dtype, low, high):
    tissue, label = draw_chest(2)
    return (low + tissue * (high - low)).astype(dtype), label


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("uint16", 100, 60000), ("int16", -1000, 2000), ("float32", -3, 5), ("float64", 0, 1e-3)],
)
def test_dtype_shape_and_range_stay(dtype, low, high):
    image, _ = radiograph(dtype, low, high)
    before = image.copy()
    shifted = shift_appearance(image, seed=5)
    assert (shifted.dtype, shifted.shape) == (image.dtype, image.shape)
    assert image.min() <= shifted.min() < shifted.max() <= image.max()
    assert np.ptp(shifted.astype(float)) > 0.5 * np.ptp(image.astype(float))
    assert not np.array_equal(shifted, image)
    assert np.array_equal(image, before)


def test_volumes_are_shifted_without_mixing_slices():
    volume = np.zeros((5, 24, 24), dtype=np.int16)
    volume[2] = radiograph(np.int16, 0, 1000)[0][20:44, 20:44]
    shifted = apply_shift(volume, AppearanceShift(blur_px=1.0), random())
    assert shifted.shape == volume.shape
    assert not shifted[[0, 1, 3, 4]].any()
    assert not np.array_equal(shifted[2], volume[2])


def test_the_seed_decides_and_each_seed_differs():
    image, _ = radiograph(np.uint8, 0, 255)
    assert np.array_equal(shift_appearance(image, (1, 7)), shift_appearance(image, (1, 7)))
    assert not np.array_equal(shift_appearance(image, (1, 7)), shift_appearance(image, (1, 8)))
    assert not np.array_equal(shift_appearance(image, (1, 7)), shift_appearance(image, (2, 7)))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gamma_alone_keeps_the_order_and_follows_the_power(gamma):
    image = np.linspace(-50, 150, 10001).reshape(1, -1).repeat(3, axis=0)
    shifted = apply_shift(image, AppearanceShift(gamma=gamma), random())
    assert (np.diff(shifted[0]) >= 0).all()
    low, high = np.percentile(image, (0.5, 99.5))
    assert shifted[1, 5000] == pytest.approx(low + 0.5**gamma * (high - low), rel=1e-6)


def test_gamma_alone_keeps_the_order_of_mean_intensities():
    image, label = radiograph(np.float64, -1, 1)
    for gamma in (0.45, 2.4):
        shifted = apply_shift(image, AppearanceShift(gamma=gamma), random())
        assert stats.spearmanr(image.ravel(), shifted.ravel()).statistic == pytest.approx(1)
        assert shifted[label > 0].mean() < shifted[(label == 0) & (image > 0)].mean()


def test_shading_is_smooth_and_spans_what_it_states():
    image = np.tile([[0.0, 1.0], [1.0, 1.0]], (20, 20))
    slope = AppearanceShift(bias=0.6, bias_slopes=(0.0, 1.0), bias_curves=(0.0, 0.0))
    shifted = apply_shift(image, slope, random())
    factors = shifted[1]
    assert (factors[0], factors[-1]) == pytest.approx((np.exp(-0.6), 1))
    assert np.allclose(np.diff(np.log(factors)), 0.6 / 39)
    assert not shifted[image == 0].any()


def test_an_outlier_does_not_stretch_the_rest():
    image, _ = radiograph(np.float64, 0, 1)
    hot = image.copy()
    hot[0, 0] = 500
    plain, shifted = (apply_shift(i, AppearanceShift(gamma=2.0), random()) for i in (image, hot))
    assert np.abs(plain - shifted)[1:].max() < 0.02
    assert shifted[0, 0] > 400


def test_noise_has_its_deviation_in_units_of_the_percentile_range():
    image = np.repeat(np.linspace(0, 100, 200)[:, np.newaxis], 200, axis=1)
    noise = (apply_shift(image, AppearanceShift(noise=0.02), random()) - image)[20:-20]
    assert noise.std() == pytest.approx(0.02 * 99, rel=0.03)


def test_drawn_shifts_are_far_from_nothing_and_go_both_ways():
    gammas = np.array([draw_shift(np.random.default_rng(seed), 2).gamma for seed in range(60)])
    darker, brighter = (gammas >= 1.6) & (gammas <= 2.4), (gammas >= 0.45) & (gammas <= 0.65)
    assert (darker | brighter).all()
    assert 15 < darker.sum() < 45


def test_an_image_without_contrast_comes_back_as_it_is():
    image = np.full((8, 9), 7, dtype=np.uint8)
    assert np.array_equal(shift_appearance(image, 0), image)


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((4, 4), dtype=bool)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="2 or 3 axes of integers or floats"):
        apply_shift(image, AppearanceShift(), random())
