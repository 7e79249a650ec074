"""Prediction of whole images by toy methods: windows, slices, mirroring, members, draws and models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_methods import ToyMethod, identity, noisy, predicted

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.volume import InferenceSettings, autocast, predict_volume, windows_of
from medsegdiff_cli.inference.windows import WindowGrid

sizes = st.tuples(st.integers(1, 8), st.integers(1, 20))


def image_of(*shape, seed=0):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.fault("F36", "F38")
@settings(max_examples=100, deadline=None)
@given(st.lists(sizes, min_size=2, max_size=3), st.sampled_from([0.25, 0.5, 0.9, 1.0]), st.integers(1, 5))
def test_the_identity_gives_back_images_of_any_shape(geometry, step_size, window_batch):
    patch, shape = zip(*geometry, strict=True)
    image = image_of(*shape)
    fusion = predicted(
        ToyMethod(identity, n_dims=len(shape)),
        image,
        patch_size=patch,
        step_size=step_size,
        window_batch=window_batch,
    )
    torch.testing.assert_close(fusion.mean, image, rtol=0, atol=3e-6)


def test_overlapping_windows_are_weighted_by_hand_on_a_4_by_4_image():
    # Two windows (4, 3) start at columns 0 and 1; the method returns the window's first column index everywhere.
    image = torch.arange(4.0).expand(1, 4, 4)
    first_column = ToyMethod(lambda x, _: x[..., :1].expand_as(x)[:, None], n_dims=2)
    fusion = predicted(first_column, image, patch_size=(4, 3), step_size=0.33)
    # sigma = 3 / 8, so one voxel off the centre weighs exp(-(8 / 3)^2 / 2) = exp(-32 / 9) = w.
    w = 0.028565500784550377
    row = [0, w / (1 + w), 1 / (1 + w), 1]
    torch.testing.assert_close(fusion.mean, torch.tensor(row).expand(1, 4, 4), rtol=1e-5, atol=1e-7)


def test_every_slice_of_a_volume_is_predicted_once_by_a_2d_method():
    image = image_of(5, 12, 10)
    total = ToyMethod(lambda x, _: (x * x.mean((1, 2, 3), keepdim=True))[:, None], n_dims=2)
    by_volume = predicted(total, image, patch_size=(8, 8), slices=True, window_batch=4).mean
    assert sum(total.calls) == 5 * 2 * 2
    by_slice = [predicted(total, image[:, z], patch_size=(8, 8)).mean for z in range(5)]
    torch.testing.assert_close(by_volume, torch.stack(by_slice, 1), rtol=0, atol=0)


def test_mirrored_versions_are_averaged_and_turned_back():
    weights = torch.arange(1.0, 13.0).reshape(3, 4)
    asymmetric = ToyMethod(lambda x, _: (x * weights)[:, None], n_dims=2)
    image = image_of(3, 4)
    fusion = predicted(asymmetric, image, patch_size=(3, 4), mirror_axes=(0, 1))
    # Flipping, multiplying and flipping back multiplies by the flipped weights.
    expected = image * (weights + weights.flip(0) + weights.flip(1) + weights.flip(0, 1)) / 4
    torch.testing.assert_close(fusion.mean, expected)
    assert asymmetric.calls == [1, 1, 1, 1]


def test_slices_are_mirrored_within_their_plane():
    weights = torch.arange(1.0, 13.0).reshape(3, 4)
    image = image_of(2, 3, 4)
    asymmetric = ToyMethod(lambda x, _: (x * weights)[:, None], n_dims=2)
    fusion = predicted(asymmetric, image, patch_size=(3, 4), slices=True, mirror_axes=(2,))
    torch.testing.assert_close(fusion.mean, image * (weights + weights.flip(1)) / 2)


@pytest.mark.parametrize("function", [identity, noisy])
def test_the_number_of_windows_per_call_changes_nothing(function):
    image = image_of(13, 11)
    results = []
    for window_batch in (1, 2, 5, 100):
        method = ToyMethod(function, n_dims=2, stochastic=True)
        fusion = predicted(method, image, patch_size=(8, 8), window_batch=window_batch, mirror_axes=(1,), draws=2)
        results.append(fusion.mean)
        assert max(method.calls) == min(window_batch, 3 * 2)
    assert all(torch.equal(results[0], other) for other in results)


def test_noise_is_keyed_by_seed_case_window_and_draw():
    image, patch = torch.zeros(1, 6, 8), (4, 8)  # two windows: rows 0-3 and 2-5
    method = ToyMethod(noisy, n_dims=2, stochastic=True)
    fusion = predicted(method, image, patch_size=patch, draws=3, seed=5, case="a", window_batch=2)
    grid, members = WindowGrid((6, 8), patch, 0.5), []
    for draw in (2, 0, 1):  # the order does not matter
        canvas = torch.zeros(1, 6, 8)
        for window in (1, 0):
            values = NoiseSource([(5, "a", window, draw)]).randn(1, *patch)[0]
            canvas[(slice(None), *grid.slices(grid.starts[window]))] += values * grid.weight
        members.append(canvas / grid.total_weight)
    torch.testing.assert_close(fusion.mean, torch.stack(members).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"case": "b"}])
def test_another_seed_or_case_sees_other_noise(change):
    image = torch.zeros(1, 4, 4)
    method = ToyMethod(noisy, n_dims=2, stochastic=True)
    here = predicted(method, image, patch_size=(4, 4)).mean
    assert torch.equal(here, predicted(method, image, patch_size=(4, 4)).mean)
    assert not torch.equal(here, predicted(method, image, patch_size=(4, 4), **change).mean)


def test_models_members_and_draws_have_equal_weight_each():
    image = image_of(4, 4)
    single = ToyMethod(identity, n_dims=2)
    double = ToyMethod(lambda x, _: torch.stack([2 * x, 4 * x], 1), n_dims=2)
    fusion = predicted([single, double], image, patch_size=(4, 4), keep_variance=True, keep_labels=True)
    assert fusion.count == len(fusion.member_labels) == 3
    torch.testing.assert_close(fusion.mean, image * (1 + 2 + 4) / 3)
    spread = ((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 3
    torch.testing.assert_close(fusion.variance, image**2 * spread)


def test_two_stochastic_models_do_not_share_noise():
    image = torch.zeros(1, 4, 4)
    method = ToyMethod(noisy, n_dims=2, stochastic=True)
    alone = predicted(method, image, patch_size=(4, 4), draws=2)
    twice = predicted([method, method], image, patch_size=(4, 4), draws=2, keep_variance=True)
    assert twice.count == 4
    assert not torch.equal(alone.mean, twice.mean)


def test_a_deterministic_method_is_not_drawn_twice():
    method = ToyMethod(identity, n_dims=2)
    assert predicted(method, image_of(4, 4), patch_size=(4, 4), draws=9).count == 1
    assert method.calls == [1]


def test_progress_hears_of_every_window():
    done = []
    image, chosen = image_of(12, 12), InferenceSettings(patch_size=(8, 8), window_batch=3)
    predict_volume([ToyMethod(identity, n_dims=2)], image, "case", chosen, on_window=done.append)
    assert done == [3, 1]
    assert sum(done) == windows_of((12, 12), chosen)


def test_forecasts_count_the_windows_of_padded_images_and_of_slices():
    assert windows_of((4, 20, 8), InferenceSettings(patch_size=(8, 8, 8))) == 1 * 4 * 1
    assert windows_of((7, 16, 8), InferenceSettings(patch_size=(8, 8), slices=True)) == 7 * 3 * 1


def test_bfloat16_is_used_where_it_is_recorded():
    product = ToyMethod(lambda x, _: (x @ x)[:, None], n_dims=2)
    image = image_of(4, 4)
    exact = predicted(product, image, patch_size=(4, 4)).mean
    rounded = predicted(product, image, patch_size=(4, 4), precision="bfloat16").mean
    torch.testing.assert_close(exact, image @ image)
    torch.testing.assert_close(rounded, (image.bfloat16() @ image.bfloat16()).float())
    assert 1e-3 < (exact - rounded).abs().max() < 0.1
    with autocast("float32", torch.device("cpu")):
        assert (image @ image).dtype == torch.float32
