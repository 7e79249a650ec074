"""Wobbly ellipses against closed forms."""

import numpy as np
import pytest

from medsegdiff_cli.phantoms.shapes import WobblyEllipse, centres, draw_wobble, plane, smooth_noise


def covered_area(ellipse, n=400):
    y, x = plane((n, n))
    return (ellipse.inside(y, x) > 0).mean() * 4


def test_pixel_centres_span_the_image_without_touching_its_edges():
    assert np.allclose(centres(4), [-0.75, -0.25, 0.25, 0.75])


@pytest.mark.parametrize("tilt", [0.0, 0.7])
def test_a_plain_ellipse_has_its_area_and_centre(tilt):
    ellipse = WobblyEllipse(centre=(0.1, -0.2), radii=(0.6, 0.3), tilt=tilt)
    y, x = plane((400, 400))
    mask = ellipse.inside(y, x) > 0
    assert covered_area(ellipse) == pytest.approx(np.pi * 0.6 * 0.3, rel=2e-3)
    assert (y * mask).sum() / mask.sum() == pytest.approx(0.1, abs=1e-3)
    assert (x * mask).sum() / mask.sum() == pytest.approx(-0.2, abs=1e-3)


def test_a_plain_ellipse_ends_at_its_radii():
    ellipse = WobblyEllipse(centre=(0.0, 0.0), radii=(0.5, 0.25))
    inside = ellipse.inside(np.array([0.499, 0.501, 0.0, 0.0]), np.array([0.0, 0.0, 0.249, 0.251]))
    assert (inside > 0).tolist() == [True, False, True, False]


def test_a_wave_of_one_order_adds_half_its_square_to_the_area():
    ellipse = WobblyEllipse(centre=(0, 0), radii=(0.5, 0.5), orders=(3,), amplitudes=(0.3,), phases=(0.4,))
    assert covered_area(ellipse) == pytest.approx(np.pi * 0.25 * (1 + 0.3**2 / 2), rel=3e-3)


def test_drawn_wobbles_keep_the_border_within_their_amplitude_and_the_area_they_state():
    for seed in range(20):
        orders, amplitudes, phases = draw_wobble(np.random.default_rng(seed), 0.15)
        ellipse = WobblyEllipse(
            centre=(0, 0), radii=(0.6, 0.4), tilt=0.3, orders=orders, amplitudes=amplitudes, phases=phases
        )
        assert 0.04 < sum(amplitudes) <= 0.15
        assert covered_area(ellipse) == pytest.approx(ellipse.area, rel=3e-3)


def test_soft_edges_are_half_on_the_border_and_as_wide_as_asked():
    circle = WobblyEllipse(centre=(0, 0), radii=(0.5, 0.5))
    y = np.array([0.0, 0.44, 0.5, 0.56, 0.9])
    assert np.allclose(circle.soft(circle.inside(y, np.zeros(5)), 0.1), [1, 1, 0.5, 0, 0])


def test_smooth_noise_is_standardised_and_smooth():
    noise = smooth_noise((64, 64), np.random.default_rng(0), 1 / 8)
    assert noise.mean() == pytest.approx(0, abs=1e-12)
    assert noise.std() == pytest.approx(1)
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] > 0.95
