"""The organ phantom as volumes of one shape."""

import numpy as np

from medsegdiff_cli.phantoms.volume import ORGAN_CLASSES, draw_volume


def test_every_volume_has_three_classes_and_grows_brighter_from_one_to_the_next():
    for index in range(10):
        image, label = draw_volume(index)
        assert image.shape == label.shape == (16, 32, 32)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) == {0, *ORGAN_CLASSES}
        means = [image[label == value].mean() for value in (0, 1, 2)]
        assert means[0] < means[1] < means[2]


def test_an_organ_fills_the_ellipsoid_it_is_drawn_from():
    """Half axes of 0.42 to 0.58 half images give 4/3 pi r^3 / 8 of the volume; the nodule takes a part of it."""
    shares = [(draw_volume(index)[1] > 0).mean() for index in range(20)]
    assert 4 / 3 * np.pi * 0.42**3 / 8 * 0.9 < min(shares)
    assert max(shares) < 4 / 3 * np.pi * (0.58**3 + 0.38**3) / 8 * 1.1


def test_the_same_index_and_seed_give_the_same_voxels():
    assert np.array_equal(draw_volume(3, 1)[0], draw_volume(3, 1)[0])
    assert not np.array_equal(draw_volume(3, 1)[1], draw_volume(3, 2)[1])
