"""Nearest images against numpy's correlation, pixel by pixel, and against images whose neighbours are known."""

import numpy as np
import pytest

from medsegdiff_cli.metrics.nearest_images import SIDE, mirrored, nearest, signature, thumbnail

RNG = np.random.default_rng(0)


def images(n, *shape):
    return RNG.normal(size=(n, *shape)).astype(np.float32)


def signatures(pictures):
    return np.stack([signature(picture) for picture in pictures])


@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 6, 5, 4)])
def test_the_distance_is_one_minus_the_correlation_averaged_over_channels(shape):
    queries, references = images(3, *shape), images(4, *shape)
    found = nearest(signatures(queries)[:, None], signatures(references))
    for query, index, distance in zip(queries, found.index, found.distance, strict=True):
        by_hand = [
            np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(query, other, strict=True)])
            for other in references
        ]
        assert index == np.argmax(by_hand)
        assert distance == pytest.approx(1 - max(by_hand), abs=1e-6)


def test_brightness_and_contrast_do_not_hide_a_copy():
    references = images(5, 1, 70, 70)
    found = nearest(signatures([3 * references[2] + 40])[:, None], signatures(references))
    assert (found.index[0], found.distance[0]) == (2, pytest.approx(0, abs=1e-6))


def test_a_constant_image_is_like_nothing():
    found = nearest(signatures(np.full((1, 1, 8, 8), 0.1, np.float32))[:, None], signatures(images(3, 1, 8, 8)))
    assert found.distance[0] == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 6, 4), (1, 90, 130), (1, 40, 6, 33)])
def test_mirrored_signatures_are_those_of_mirrored_images(shape):
    picture = images(1, *shape)
    versions = mirrored(signatures(picture), shape, (0, 1))
    expected = [picture[0], picture[0][:, ::-1], picture[0][:, :, ::-1], picture[0][:, ::-1, ::-1]]
    assert versions.shape[1] == 4
    for want in expected:
        assert min(np.abs(version - signature(want)).max() for version in versions[0]) < 0.02
    np.testing.assert_allclose(np.linalg.norm(versions, axis=-1), 1, rtol=1e-5)


def test_a_mirrored_copy_is_found_where_mirrors_are_compared():
    references = images(5, 1, 8, 8)
    copy = signatures([references[4][:, ::-1]])
    assert nearest(mirrored(copy, (1, 8, 8), (0,)), signatures(references)).distance[0] < 1e-6
    assert nearest(mirrored(copy, (1, 8, 8), (1,)), signatures(references)).distance[0] > 0.3


def test_nothing_is_compared_with_its_own_group():
    pictures = signatures(np.repeat(images(3, 1, 8, 8), 2, axis=0))
    groups = [0, 0, 1, 1, 2, 2]
    found = nearest(pictures[:, None], pictures, query_groups=groups, reference_groups=groups)
    assert all(groups[index] != group for index, group in zip(found.index, groups, strict=True))
    assert found.distance.min() > 0.1
    alone = nearest(pictures[:2, None], pictures[:2], query_groups=[0, 0], reference_groups=[0, 0])
    assert (alone.index.tolist(), alone.distance.tolist()) == ([-1, -1], [np.inf, np.inf])


def test_many_queries_are_answered_block_by_block():
    references = signatures(images(600, 1, 4, 4))
    found = nearest(references[:, None], references)
    assert found.index.tolist() == list(range(600))


def test_thumbnails_are_means_over_blocks():
    picture = images(1, 128, 192)
    expected = picture.reshape(1, 64, 2, 64, 3).mean((2, 4))
    np.testing.assert_allclose(thumbnail(picture, 64), expected, atol=1e-6)
    assert thumbnail(images(1, 65, 10), 64).shape == (1, 64, 10)
    assert signature(images(1, 100, 100, 100)).shape == (SIDE[3] ** 3,)
