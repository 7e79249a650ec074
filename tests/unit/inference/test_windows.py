"""Windows cover the image evenly, and their weights are a partition of unity (oracle O35)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsegdiff_cli.inference.windows import WindowGrid, gaussian_profile, pad_to_patch, window_starts

axes = st.tuples(st.integers(1, 9), st.integers(0, 14), st.sampled_from([0.2, 0.5, 0.75, 1.0]))


@pytest.mark.parametrize(
    ("length", "patch", "step_size", "expected"),
    [
        (8, 8, 0.5, [0]),
        (12, 8, 0.5, [0, 4]),
        (16, 8, 0.5, [0, 4, 8]),
        (9, 8, 0.5, [0, 1]),
        (13, 8, 0.5, [0, 2, 5]),  # 5 voxels in 2 steps of 2.5, rounded to even
        (17, 8, 0.5, [0, 3, 6, 9]),  # 9 voxels in ceil(9 / 4) = 3 steps
        (24, 8, 1.0, [0, 8, 16]),
        (20, 8, 1.0, [0, 6, 12]),  # spread evenly instead of a thin last window
        (10, 8, 0.25, [0, 2]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),  # a slice is never visited twice
        (4, 2, 0.1, [0, 1, 2]),
    ],
)
def test_windows_are_spread_evenly_from_end_to_end(length, patch, step_size, expected):
    assert window_starts(length, patch, step_size) == expected


@given(axes)
def test_windows_leave_no_gap_and_do_not_repeat(axis):
    patch, surplus, step_size = axis
    starts = window_starts(patch + surplus, patch, step_size)
    assert (starts[0], starts[-1]) == (0, surplus)
    distances = np.diff(starts)
    # Rounding moves a window by at most half a voxel, so a gap needs a step beyond the patch.
    assert all(0 < distance <= max(1, np.ceil(patch * step_size)) for distance in distances)


def test_window_numbers_follow_the_first_axis_slowest():
    grid = WindowGrid((12, 9), (8, 8), 0.5)
    assert grid.starts == ((0, 0), (0, 1), (4, 0), (4, 1))
    assert [list(numbers) for numbers in grid.batches(3)] == [[0, 1, 2], [3]]
    assert grid.slices((4, 1)) == (slice(4, 12), slice(1, 9))


def test_weights_are_a_gaussian_with_an_eighth_of_the_patch_as_sigma():
    patch = 33
    impulse = np.zeros(patch)
    impulse[patch // 2] = 1
    smoothed = ndimage.gaussian_filter1d(impulse, patch / 8, mode="constant", truncate=6)
    np.testing.assert_allclose(gaussian_profile(patch).numpy(), smoothed / smoothed.max(), atol=1e-4)


@pytest.mark.parametrize("patch", [1, 2, 3, 8, 64, 513])
def test_weights_are_symmetric_and_nowhere_zero(patch):
    profile = gaussian_profile(patch)
    assert torch.equal(profile, profile.flip(0))
    assert profile.min() > 0
    assert profile.max() <= 1


@pytest.mark.fault("F38")
@settings(max_examples=100, deadline=None)
@given(st.lists(axes, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_weighted_windows_of_an_image_add_up_to_the_image(geometry, random):
    patch = tuple(axis[0] for axis in geometry)
    shape = tuple(axis[0] + axis[1] for axis in geometry)
    grid = WindowGrid(shape, patch, geometry[0][2])
    image = torch.randn(shape, generator=torch.Generator().manual_seed(random.randrange(2**31)))
    canvas, total = torch.zeros(shape), torch.zeros(shape)
    for start in grid.starts:
        canvas[grid.slices(start)] += image[grid.slices(start)] * grid.weight
        total[grid.slices(start)] += grid.weight
    torch.testing.assert_close(grid.total_weight, total, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(canvas / grid.total_weight, image, rtol=0, atol=1e-5)
    assert grid.total_weight.min() > 0


@pytest.mark.fault("F36")
def test_small_images_are_padded_around_their_centre_and_cut_back():
    image = torch.arange(1.0, 7.0).reshape(1, 2, 3)
    padded, inside = pad_to_patch(image, (4, 4))
    expected = [
        [0, 0, 0, 0],
        [1, 2, 3, 0],
        [4, 5, 6, 0],
        [0, 0, 0, 0],
    ]
    assert padded[0].tolist() == expected
    assert torch.equal(padded[(slice(None), *inside)], image)


def test_images_larger_than_the_patch_are_not_padded():
    image = torch.rand(2, 5, 6)
    padded, inside = pad_to_patch(image, (4, 6))
    assert torch.equal(padded, image)
    assert inside == (slice(0, 5), slice(0, 6))
