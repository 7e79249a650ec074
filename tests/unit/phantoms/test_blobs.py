"""The blob phantom."""

import numpy as np
import pytest

from medsegdiff_cli.phantoms.blobs import BLOB_WINDOW, draw_blobs, draw_ellipses
from medsegdiff_cli.phantoms.shapes import plane


def masks(index, n=240):
    y, x = plane((n, n))
    return [ellipse.inside(y, x) > 0 for ellipse in draw_ellipses(np.random.default_rng([0, index]))]


def test_target_and_distractors_are_apart_and_inside_the_image():
    for index in range(60):
        found = np.stack(masks(index))
        assert found.sum(axis=0).max() == 1
        assert found.any(axis=(1, 2)).all()
        assert not found[:, [0, -1], :].any()
        assert not found[:, :, [0, -1]].any()


def test_the_label_is_the_target_with_the_area_of_its_closed_form():
    for index in range(10):
        _, label = draw_blobs(index, shape=(240, 240))
        target = draw_ellipses(np.random.default_rng([0, index]))[0]
        assert label.mean() * 4 == pytest.approx(target.area, rel=0.02)
        assert np.array_equal(label > 0, masks(index)[0])


def test_contrasts_are_one_a_half_and_minus_point_eight():
    contrasts = []
    for index in range(30):
        image, _ = draw_blobs(index, shape=(120, 120), noise=0.0)
        found = masks(index, 120)
        background = image[~np.any(found, axis=0)].mean()
        contrasts.append([image[mask].mean() - background for mask in found])
    # Soft edges take a little of each.
    assert np.mean(contrasts, axis=0) == pytest.approx([1.0, 0.5, -0.8], abs=0.08)


def test_noise_has_its_deviation_and_changes_no_shape():
    clean, label = draw_blobs(3, noise=0.0)
    for noise in (0.5, 1.1):
        noisy, same = draw_blobs(3, noise=noise)
        assert np.array_equal(label, same)
        assert (noisy - clean).std() == pytest.approx(noise, rel=0.05)


def test_nearly_all_of_the_strongest_noise_is_in_the_window():
    values = np.stack([draw_blobs(index, noise=1.1)[0] for index in range(20)])
    assert ((values < BLOB_WINDOW[0]) | (values > BLOB_WINDOW[1])).mean() < 1e-3


def test_seeds():
    assert np.array_equal(draw_blobs(2, 5)[0], draw_blobs(2, 5)[0])
    assert not np.array_equal(draw_blobs(2, 5)[1], draw_blobs(2, 6)[1])
    assert draw_blobs(0)[0].shape == (48, 48)
