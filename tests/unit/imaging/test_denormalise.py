"""Intensities come back: what `normalise_channel` did is undone, exactly where the plan knows how."""

import numpy as np
import pytest

from medsegdiff_cli.imaging.denormalise import fitted, intensity_scale
from medsegdiff_cli.imaging.normalise import SCHEMES, normalise_channel

VOXELS = np.random.default_rng(0).uniform(20, 220, (6, 7, 8))
MASK = np.ones(VOXELS.shape, bool)
STATISTICS = {"mean": 100.0, "std": 50.0, "percentile_00_5": 30.0, "percentile_99_5": 200.0}


def normalised(scheme, statistics=STATISTICS):
    return normalise_channel(VOXELS, scheme, mask=MASK, statistics=statistics)


@pytest.mark.parametrize("scheme", ["zscore_dataset", "rgb_0_1", "none", "ct"])
def test_what_the_plan_knows_comes_back_exactly_without_any_image(scheme):
    scale = intensity_scale(scheme, STATISTICS, (0.0, 255.0))
    expected = VOXELS.clip(30, 200) if scheme == "ct" else VOXELS
    np.testing.assert_allclose(scale.apply(normalised(scheme)), expected, rtol=1e-5)
    assert scale.source == "plan"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_images_own_numbers_bring_it_back(scheme):
    if scheme == "ct":
        pytest.skip("clipping is no linear map")
    scale = intensity_scale(scheme, STATISTICS, (0.0, 255.0), typical=fitted(VOXELS, normalised(scheme)))
    np.testing.assert_allclose(scale.apply(normalised(scheme)), VOXELS, rtol=1e-4)


def test_ranks_keep_mean_and_deviation_of_a_typical_image():
    statistics = {"equalise_gamma": 0.5}
    ranks = normalised("rescale_0_1", statistics)
    scale = intensity_scale("rescale_0_1", statistics, (0.0, 255.0), typical=fitted(VOXELS, ranks))
    back = scale.apply(ranks)
    assert (back.mean(), back.std()) == (pytest.approx(VOXELS.mean(), rel=0.02), pytest.approx(VOXELS.std(), rel=0.02))
    assert scale.source == "training images"


@pytest.mark.parametrize(
    ("scheme", "values", "expected"),
    [
        ("rescale_0_1", [0, 1], [10, 250]),
        ("rescale_minus1_1", [-1, 1], [10, 250]),
        ("quantile", [-1, 0, 1], [10, 130, 250]),
        ("zscore", [-3, 0, 3, 9], [10, 130, 250, 250]),
    ],
)
def test_without_images_the_training_range_stands_in(scheme, values, expected):
    scale = intensity_scale(scheme, {}, (10.0, 250.0))
    assert scale.apply(np.array(values)).tolist() == pytest.approx(expected)
    assert scale.source == "range"


def test_a_clip_of_the_plan_bounds_intensities():
    scale = intensity_scale("zscore", {"clip_low": 50.0, "clip_high": 60.0}, (0.0, 255.0))
    assert scale.apply(np.array([-9.0, 9.0])).tolist() == [50, 60]


def test_what_nobody_knows_stays_as_it_is():
    scale = intensity_scale("zscore", {}, None)
    assert (scale.apply(np.array([-2.5, 7.0])).tolist(), scale.source) == ([-2.5, 7.0], "nothing")
    assert fitted(VOXELS, np.zeros_like(VOXELS)) is None
