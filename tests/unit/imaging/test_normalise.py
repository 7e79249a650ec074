"""Normalisation: formulas derived by hand on small arrays."""

from typing import get_args

import numpy as np
import pytest

from medsegdiff_cli.artifacts.plan import Normalisation
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.normalise import SCHEMES, is_bounded, needs_mask, normalise_channel, scheme_for_channel_name

STATISTICS = {"mean": 10.0, "std": 4.0, "percentile_00_5": -2.0, "percentile_99_5": 30.0}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("noNorm", "none"),
        ("zscore", "zscore"),
        ("rescale_to_0_1", "rescale_0_1"),
        ("RGB_to_0_1", "rgb_0_1"),
        ("T1", "zscore"),
        ("R", "zscore"),
        ("", "zscore"),
    ],
)
def test_channel_names_choose_schemes_as_in_nnunet(name, scheme):
    assert scheme_for_channel_name(name) == scheme


def test_zscore_has_mean_0_and_standard_deviation_1():
    # mean 3, variance (4 + 0 + 4) / 3
    ours = normalise_channel(np.array([1, 3, 5]), "zscore")
    np.testing.assert_allclose(ours, np.array([-2, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)


def test_zscore_within_a_mask_ignores_the_rest_and_leaves_it_0():
    values, mask = np.array([1, 3, 5, 1000]), np.array([True, True, True, False])
    expected = [*(np.array([-2, 0, 2]) / np.sqrt(8 / 3)), 0]
    np.testing.assert_allclose(normalise_channel(values, "zscore", mask=mask), expected, rtol=1e-6)


def test_zscore_within_an_empty_mask_is_0():
    assert normalise_channel(np.array([1, 2]), "zscore", mask=np.zeros(2, bool)).tolist() == [0, 0]


def test_dataset_zscore_uses_the_given_mean_and_standard_deviation():
    ours = normalise_channel(np.array([10, 14, 2]), "zscore_dataset", statistics=STATISTICS)
    assert ours.tolist() == [0, 1, -2]


def test_ct_clips_to_the_percentiles_then_standardises():
    ours = normalise_channel(np.array([-1000, 10, 3000], np.int16), "ct", statistics=STATISTICS)
    assert ours.tolist() == [(-2 - 10) / 4, 0, (30 - 10) / 4]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_intensities_are_clipped_before_they_are_standardised(dtype):
    """By hand: -2000, 0, 100, 3000 become -991, 0, 100, 362."""
    values = np.array([[-2000, 0, 100, 3000]], dtype)
    clipped = np.array([[-991, 0, 100, 362]], "float64")
    found = normalise_channel(values, "zscore", statistics={"clip_low": -991.0, "clip_high": 362.0})
    assert np.allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-5)
    assert values.tolist() == [[-2000, 0, 100, 3000]], "the input is left alone"
    bounded = normalise_channel(values, "none", statistics={"clip_low": -991.0, "clip_high": 362.0})
    assert bounded.dtype == np.float32
    assert bounded.tolist() == clipped.tolist()


def test_rescale_maps_the_extremes_to_0_and_1_and_rgb_divides_by_255():
    assert normalise_channel(np.array([-4, 0, 4]), "rescale_0_1").tolist() == [0, 0.5, 1]
    assert normalise_channel(np.array([-4, 0, 4]), "rescale_minus1_1").tolist() == [-1, 0, 1]


def test_every_normalisation_that_a_plan_can_name_exists():
    assert set(get_args(Normalisation)) == set(SCHEMES)
    assert normalise_channel(np.array([0, 51, 255], np.uint8), "rgb_0_1").tolist() == [0, np.float32(0.2), 1]


def test_unsigned_values_do_not_wrap_around():
    ours = normalise_channel(np.array([0, 255], np.uint8), "zscore")
    assert ours.tolist() == [-1, 1]


def test_none_only_changes_the_dtype():
    ours = normalise_channel(np.array([-7, 300], np.int16), "none")
    assert (ours.dtype, ours.tolist()) == (np.float32, [-7, 300])


@pytest.mark.fault("F20")
@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"quantile"}))
@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_images_stay_finite(scheme, value):
    statistics = {**STATISTICS, "std": 0.0}
    ours = normalise_channel(np.full((3, 4), value, np.uint8), scheme, statistics=statistics)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_returns_a_new_float32_array_and_leaves_the_input_alone(scheme):
    values = np.linspace(0, 200, 60, dtype=np.float32).reshape(5, 12)
    before = values.copy()
    ours = normalise_channel(values, scheme, mask=np.ones((5, 12), bool), statistics=STATISTICS)
    assert (ours.dtype, ours.shape) == (np.float32, (5, 12))
    ours[:] = -1
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("scheme", [s for s in sorted(SCHEMES) if is_bounded(s)])
def test_bounded_schemes_keep_half_precision_useful(scheme):
    values = np.random.default_rng(0).integers(0, 256, 1000)
    ours = normalise_channel(values, scheme, statistics=STATISTICS)
    assert np.abs(ours).max() <= 5
    assert np.abs(ours.astype(np.float16) - ours).max() < 5 / 1024


def test_quantile_maps_the_masked_quantiles_to_minus_1_and_1():
    # 101 masked voxels 0..100: the 1 % quantile is 1, the 99 % quantile 99. The voxel outside must not enter.
    values = np.append(np.arange(101.0), 1e6)
    mask = np.append(np.ones(101, bool), False)
    ours = normalise_channel(values, "quantile", mask=mask)
    a = 2 / (99 - 1)
    b = 1 - a * 99
    np.testing.assert_allclose(ours, a * values + b, rtol=1e-6)
    np.testing.assert_allclose([ours[1], ours[99]], [-1, 1], rtol=1e-6)
    np.testing.assert_allclose([a * 1 + b, a * 99 + b], [-1, 1], rtol=1e-14)


@pytest.mark.fault("F21")
def test_quantile_refuses_a_missing_an_empty_and_a_constant_mask():
    values = np.arange(10.0)
    assert needs_mask("quantile")
    with pytest.raises(InputDataError, match="needs a mask"):
        normalise_channel(values, "quantile")
    with pytest.raises(InputDataError, match="mask is empty"):
        normalise_channel(values, "quantile", mask=np.zeros(10, bool))
    with pytest.raises(InputDataError, match="both 4"):
        normalise_channel(np.full(10, 4.0), "quantile", mask=np.ones(10, bool))


def test_colours_beyond_8_bits_are_refused():
    with pytest.raises(InputDataError, match="to 300"):
        normalise_channel(np.array([0, 300]), "rgb_0_1")
    with pytest.raises(InputDataError, match="from -1"):
        normalise_channel(np.array([-1, 3]), "rgb_0_1")


def test_an_unknown_scheme_and_missing_statistics_are_named():
    with pytest.raises(UsageError, match="did you mean 'zscore'"):
        normalise_channel(np.zeros(2), "z-score")
    with pytest.raises(UsageError, match="lacks the data set's percentile_00_5, percentile_99_5"):
        normalise_channel(np.zeros(2), "ct", statistics={"mean": 0, "std": 1})
