"""The way onto the network's grid."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.transform import ChannelScheme, Placement, TransformSettings, forward, grid_shape

PLAIN = ChannelScheme(name="nonorm", scheme="none")


def _image(shape: tuple[int, ...], spacing_mm: tuple[float, ...], n_channels: int = 1, seed: int = 0) -> Image:
    array = np.random.default_rng(seed).normal(100, 20, (n_channels, *shape)).astype(np.float32)
    return Image(array=array, geometry=Geometry.plain(shape, spacing_mm))


def _settings(**changes) -> TransformSettings:
    base = TransformSettings(
        transpose=(0, 1, 2), crop="none", channels=(PLAIN,), geometry="spacing", spacing_mm=(1.0, 1.0, 1.0)
    )
    return replace(base, **changes)


def test_the_target_spacing_gives_nnunets_shape_and_the_axes_are_transposed():
    image = _image((10, 20, 30), (1.0, 2.0, 0.8))
    transformed = forward(image, _settings(transpose=(1, 0, 2), spacing_mm=(1.5, 1.1, 0.9)))
    expected = (round(2.0 / 1.5 * 20), round(1.0 / 1.1 * 10), round(0.8 / 0.9 * 30))
    assert transformed.image.shape == (1, *expected)
    assert transformed.spacing_mm == (1.5, 1.1, 0.9)


@pytest.mark.fault("F37")
def test_an_image_of_the_target_spacing_is_left_alone_bit_for_bit():
    image = _image((5, 6, 7), (1.0, 1.0, 1.0))
    transformed = forward(image, _settings(transpose=(2, 0, 1)))
    np.testing.assert_array_equal(transformed.image, image.array.transpose(0, 3, 1, 2))


def test_a_2d_configuration_of_volumes_keeps_the_slices_and_resizes_each_in_plane():
    image = _image((4, 20, 30), (5.0, 1.0, 1.0))
    wanted = _settings(spacing_mm=(None, 2.0, 1.5))
    transformed = forward(image, wanted)
    expected = [resize(s.astype(float), (10, 20), 3, mode="edge", anti_aliasing=False) for s in image.array[0]]
    np.testing.assert_allclose(transformed.image[0], expected, atol=1e-5 * np.ptp(image.array))
    assert transformed.spacing_mm == (5.0, 2.0, 1.5)
    shorter = forward(image, replace(wanted, spacing_mm=(2.0, 1.5)))
    np.testing.assert_array_equal(shorter.image, transformed.image)


def test_normalisation_comes_after_cropping_and_before_resampling():
    array = np.zeros((1, 8, 8, 8), np.float32)
    array[0, 2:6, 2:6, 2:6] = np.random.default_rng(0).normal(50, 5, (4, 4, 4))
    image = Image(array=array, geometry=Geometry.plain((8, 8, 8), (1.0, 1.0, 1.0)))
    channels = (ChannelScheme(name="T1", scheme="zscore"),)
    transformed = forward(image, _settings(crop="nonzero", channels=channels, spacing_mm=(0.5, 0.5, 0.5)))
    inner = array[0, 2:6, 2:6, 2:6].astype(float)
    standardised = (inner - inner.mean()) / inner.std()
    expected = resize(standardised, (8, 8, 8), 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(transformed.image[0], expected, atol=1e-5)


def test_without_a_given_mask_a_masked_channel_uses_the_filled_nonzero_voxels():
    array = np.zeros((1, 6, 6), np.float32)
    array[0, 1:5, 1:5] = np.arange(1, 17).reshape(4, 4)
    array[0, 2, 2] = 0  # a hole: part of the head
    image = Image(array=array, geometry=Geometry.plain((6, 6)))
    channels = (ChannelScheme(name="T1", scheme="zscore", use_mask=True),)
    transformed = forward(image, _settings(transpose=(0, 1), channels=channels, spacing_mm=(1.0, 1.0)))
    head = array[0, 1:5, 1:5]
    expected = np.zeros((6, 6))
    expected[1:5, 1:5] = (head - head.mean()) / head.std()
    np.testing.assert_allclose(transformed.image[0], expected, atol=1e-6)


def test_a_given_mask_crops_and_normalises():
    image = _image((6, 7), (1.0, 1.0))
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:6] = True
    mask[1, 2] = False
    channels = (ChannelScheme(name="xray", scheme="quantile"),)
    wanted = _settings(transpose=(1, 0), crop="mask", channels=channels, spacing_mm=(1.0, 1.0))
    transformed = forward(image, wanted, mask=mask)
    low, high = np.quantile(image.array[0][mask], (0.01, 0.99))
    expected = 2 * (image.array[0, 1:4, 2:6].T - low) / (high - low) - 1
    np.testing.assert_allclose(transformed.image[0], expected, atol=1e-5)


def test_resize_maps_the_whole_image_to_the_fixed_grid():
    image = _image((20, 30), (1.0, 1.0))
    wanted = _settings(transpose=(0, 1), geometry="resize", spacing_mm=None, size_voxels=(16, 16))
    transformed = forward(image, wanted)
    expected = resize(image.array[0].astype(float), (16, 16), 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(transformed.image[0], expected, atol=1e-5 * np.ptp(image.array))
    assert transformed.spacing_mm == (20 / 16, 30 / 16)


def test_keeping_the_aspect_pads_with_0_on_both_sides():
    image = _image((20, 40), (1.0, 1.0))
    wanted = _settings(transpose=(0, 1), geometry="resize", spacing_mm=None, size_voxels=(16, 16), keep_aspect=True)
    transformed = forward(image, wanted, label=np.ones((20, 40), np.uint8))
    inner = resize(image.array[0].astype(float), (8, 16), 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(transformed.image[0, 4:12], inner, atol=1e-5 * np.ptp(image.array))
    for outside in (slice(0, 4), slice(12, 16)):
        assert (transformed.image[0, outside] == 0).all()
        assert (transformed.label[outside] == 0).all()
    assert (transformed.label[4:12] == 1).all()


def test_the_aspect_is_that_of_the_patient_not_of_the_voxels():
    # 20 x 2 mm and 40 x 1 mm: a square.
    wanted = _settings(transpose=(0, 1), geometry="resize", spacing_mm=None, size_voxels=(16, 24), keep_aspect=True)
    transformed = forward(_image((20, 40), (2.0, 1.0)), wanted)
    assert transformed.placement.resampled_shape == (16, 16)
    assert transformed.spacing_mm == (2.5, 2.5)


def test_a_centre_crop_cuts_and_pads_around_the_centre():
    image = _image((10, 4), (1.0, 1.0))
    wanted = _settings(transpose=(0, 1), spacing_mm=(1.0, 1.0), centre_crop=(6, 8))
    transformed = forward(image, wanted)
    np.testing.assert_array_equal(transformed.image[0, :, 2:6], image.array[0, 2:8])
    assert (transformed.image[0][:, [0, 1, 6, 7]] == 0).all()


@pytest.mark.parametrize("geometry", ["spacing", "resize"])
def test_labels_lie_on_the_image(geometry):
    label = np.zeros((12, 30, 30), np.uint8)
    label[3:8, 10:22, 5:15] = 1
    image = Image(array=label[None].astype(np.float32), geometry=Geometry.plain((12, 30, 30), (2.0, 1.0, 1.0)))
    wanted = _settings(geometry=geometry, spacing_mm=(2.0, 1.4, 0.7), size_voxels=(12, 21, 43), interpolation="linear")
    transformed = forward(image, wanted, label=label)
    np.testing.assert_array_equal(transformed.label, transformed.image[0] > 0.5)


def test_half_precision_rounds_and_saturates():
    image = Image(array=np.array([[[1.0001, 1e6]]], np.float32), geometry=Geometry.plain((1, 2)))
    wanted = _settings(transpose=(0, 1), spacing_mm=(1.0, 1.0), store_dtype="float16")
    transformed = forward(image, wanted)
    assert transformed.image.dtype == np.float16
    assert transformed.image.tolist() == [[[1.0, 65504.0]]]


def test_an_image_of_zeros_passes():
    image = Image(array=np.zeros((1, 4, 5, 6), np.int16), geometry=Geometry.plain((4, 5, 6)))
    channels = (ChannelScheme(name="T1", scheme="zscore", use_mask=True),)
    transformed = forward(image, _settings(crop="nonzero", channels=channels))
    assert transformed.image.shape == (1, 4, 5, 6)
    assert (transformed.image == 0).all()


def test_the_image_is_not_changed_and_the_result_owns_its_memory():
    image = _image((4, 5, 6), (1.0, 1.0, 1.0))
    before = image.array.copy()
    label = np.ones((4, 5, 6), np.uint8)
    transformed = forward(image, _settings(), label=label)
    transformed.image[:] = 0
    transformed.label[:] = 0
    np.testing.assert_array_equal(image.array, before)
    assert (label == 1).all()


@settings(max_examples=50, deadline=None)
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.sampled_from([0.5, 1.0, 1.3, 5.0])] * 3),
    st.sampled_from(["spacing", "resize"]),
    st.booleans(),
    st.sampled_from([None, (4, 6), (None, 5, 9), (3, 3, 3)]),
)
def test_the_grids_shape_is_known_without_voxels_and_placements_survive_json(
    order, shape, spacing_mm, geometry, keep_aspect, centre_crop
):
    wanted = _settings(
        transpose=tuple(order),
        geometry=geometry,
        spacing_mm=(None, 0.9, 1.1),
        size_voxels=(8, 7),
        keep_aspect=keep_aspect,
        centre_crop=centre_crop,
    )
    transformed = forward(_image(shape, spacing_mm), wanted, label=np.zeros(shape, np.uint8))
    expected = grid_shape(shape, spacing_mm, wanted)
    assert transformed.image.shape == (1, *expected)
    assert transformed.label.shape == expected
    assert transformed.placement.grid_shape == expected
    restored = Placement.from_json(json.loads(json.dumps(transformed.placement.to_json())))
    assert restored == transformed.placement


def test_what_does_not_fit_is_refused_with_its_numbers():
    image = _image((4, 5, 6), (1.0, 1.0, 1.0))
    with pytest.raises(InputDataError, match="1 channels, the plan expects 2 \\(nonorm, nonorm\\)"):
        forward(image, _settings(channels=(PLAIN, PLAIN)))
    with pytest.raises(InputDataError, match="3 axes, the plan expects 2"):
        forward(image, _settings(transpose=(0, 1)))
    with pytest.raises(InputDataError, match="label's shape \\(4, 5, 7\\)"):
        forward(image, _settings(), label=np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(InputDataError, match="crops to a mask"):
        forward(image, _settings(crop="mask"))
