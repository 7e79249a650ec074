"""Scanners: each effect measured alone, against its formula."""

import numpy as np
import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.phantoms.chest import draw_chest
from medsegdiff_cli.phantoms.scanner import GRAIN_PX, SCANNERS, VERTICAL, Scanner, acquire, find_scanner, to_uint8

GREY = np.full((200, 201), 0.5)


def random():
    return np.random.default_rng(0)


def test_a_scanner_without_effects_shows_the_tissue():
    tissue, _ = draw_chest(0)
    assert np.array_equal(acquire(tissue, Scanner(), random()), tissue)


@pytest.mark.parametrize("gamma", [0.5, 2.6])
def test_gamma_is_an_exponent(gamma):
    image = acquire(np.linspace(0, 1, 11).reshape(1, 11), Scanner(gamma=gamma), random())
    assert np.allclose(np.log(image[0, 1:-1]) / np.log(np.linspace(0, 1, 11)[1:-1]), gamma)


def test_shading_falls_in_a_line_along_its_axis_and_keeps_the_mean():
    lateral, vertical = (acquire(GREY, Scanner(bias=0.8, bias_axis=axis), random()) for axis in (-1, VERTICAL))
    assert (lateral[0, 0], lateral[0, 100], lateral[0, -1]) == pytest.approx((0.7, 0.5, 0.3))
    assert np.ptp(lateral, axis=0).max() == 0
    assert (vertical[0, 5], vertical[-1, 5]) == pytest.approx((0.7, 0.3))
    assert lateral.mean() == pytest.approx(0.5)


def test_blur_spreads_a_point_by_its_deviation():
    point = np.zeros((41, 41))
    point[20, 20] = 1
    image = acquire(point, Scanner(blur_px=1.5), random())
    offsets = np.arange(41) - 20
    assert image.sum() == pytest.approx(1)
    assert np.sqrt((image.sum(axis=0) * offsets**2).sum()) == pytest.approx(1.5, rel=0.01)


def test_white_noise_has_its_deviation_and_no_neighbours():
    noise = acquire(GREY, Scanner(noise=0.16), random()) - GREY
    assert noise.std() == pytest.approx(0.16, rel=0.02)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_correlated_noise_has_the_deviation_and_correlation_of_filtered_noise():
    noise = acquire(GREY, Scanner(correlated_noise=0.45), random()) - GREY
    assert noise.std() == pytest.approx(0.45 / (2 * np.sqrt(np.pi) * GRAIN_PX), rel=0.05)
    for lag in (1, 2):
        expected = np.exp(-(lag**2) / (4 * GRAIN_PX**2))
        assert np.corrcoef(noise[:, lag:].ravel(), noise[:, :-lag].ravel())[0, 1] == pytest.approx(expected, abs=0.05)


def test_volumes_are_shaded_along_their_last_axes_too():
    image = acquire(np.ones((3, 4, 5)), Scanner(bias=0.4, bias_axis=VERTICAL), random())
    assert np.allclose(image[:, 0], 1.2)
    assert np.allclose(image[:, -1], 0.8)


def contrast_to_noise(name):
    """Lungs against the tissue that is no lung, in deviations of the noise within the lungs."""
    values = []
    for index in range(10):
        tissue, label = draw_chest(index)
        image = acquire(tissue, SCANNERS[name], np.random.default_rng(index))
        trunk = (tissue > 0.4) & (label == 0)
        values.append((image[trunk].mean() - image[label > 0].mean()) / image[label > 0].std())
    return np.mean(values)


def test_b_darkens_and_c_brightens_and_the_strong_ones_do_so_more():
    means = {}
    for name, scanner in SCANNERS.items():
        images = [acquire(draw_chest(index)[0], scanner, np.random.default_rng(index)) for index in range(10)]
        means[name] = np.mean(images)
    assert means["B-strong"] < means["B"] < means["A"] < means["C"] < means["C-strong"]


def test_contrast_falls_from_a_to_the_others_and_further_to_the_strong_ones():
    values = {name: contrast_to_noise(name) for name in SCANNERS}
    assert values["A"] > values["B"] > values["B-strong"] > 0.5
    assert values["A"] > values["C"] > values["C-strong"] > 0.5


def test_an_unknown_scanner_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="B-strong"):
        find_scanner("B-strang")


def test_pixels_are_rounded_and_clipped_at_the_window():
    image = np.array([[-1.0, -0.25, 0.5, 1.25, 3.0]])
    assert to_uint8(image, (-0.25, 1.25)).tolist() == [[0, 0, 128, 255, 255]]
