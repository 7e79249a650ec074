"""The way back: equal to resizing every class and deciding afterwards, without ever doing so."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from medsegdiff_cli.imaging.export import export_labels, export_map, export_maps
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.transform import ChannelScheme, Placement, TransformSettings, forward

PLAIN = ChannelScheme(name="nonorm", scheme="none")
PAIRS = [  # grid, native
    ((20, 31), (47, 40)),
    ((40, 30), (17, 30)),
    ((16, 16), (32, 32)),
    ((9, 10, 11), (14, 23, 17)),
    ((14, 20, 12), (9, 11, 12)),
    ((1, 8, 9), (1, 20, 7)),
]


def _placement(grid: tuple[int, ...], native: tuple[int, ...], nearest_axis: int | None = None) -> Placement:
    return Placement(
        geometry=Geometry.plain(native),
        transpose=tuple(range(len(native))),
        crop_box=tuple(slice(0, n) for n in native),
        resampled_shape=grid,
        window=tuple(slice(0, n) for n in grid),
        spacing_mm=(1.0,) * len(grid),
        nearest_axis=nearest_axis,
    )


def _smooth_probabilities(n_classes: int, grid: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n_classes, *(max(2, n // 4) for n in grid)))
    logits = np.stack([resize(c, grid, 1, mode="edge", anti_aliasing=False) for c in coarse]) * 4
    logits += rng.normal(0, 0.3, logits.shape)
    exponentials = np.exp(logits - logits.max(axis=0))
    return (exponentials / exponentials.sum(axis=0)).astype(np.float32)


def _by_skimage(scores: np.ndarray, native: tuple[int, ...]) -> np.ndarray:
    return np.stack([resize(s.astype(np.float64), native, 1, mode="edge", anti_aliasing=False) for s in scores])


def _by_torch(scores: np.ndarray, native: tuple[int, ...]) -> np.ndarray:
    mode = {2: "bilinear", 3: "trilinear"}[len(native)]
    return torch.nn.functional.interpolate(torch.from_numpy(scores)[None].double(), native, mode=mode)[0].numpy()


def _assert_equal_apart_from_ties(ours: np.ndarray, resized_scores: np.ndarray) -> None:
    ranked = np.sort(resized_scores, axis=0)
    is_tie = ranked[-1] - ranked[-2] < 1e-12
    assert is_tie.mean() < 0.01
    assert ((ours != resized_scores.argmax(axis=0)) & ~is_tie).sum() == 0


@pytest.mark.parametrize("resized_by", [_by_skimage, _by_torch])
@pytest.mark.parametrize(("grid", "native"), PAIRS)
@pytest.mark.parametrize("n_classes", [2, 7])
def test_labels_equal_resizing_every_class_in_float64_and_taking_the_largest(grid, native, n_classes, resized_by):
    scores = _smooth_probabilities(n_classes, grid)
    ours = export_labels(scores, _placement(grid, native), exclusive=True)
    assert ours.shape == native
    _assert_equal_apart_from_ties(ours, resized_by(scores, native))


def test_labels_of_pure_noise_equal_too():
    scores = np.random.default_rng(0).random((5, 8, 9, 10)).astype(np.float32)
    _assert_equal_apart_from_ties(
        export_labels(scores, _placement((8, 9, 10), (19, 12, 25))), _by_skimage(scores, (19, 12, 25))
    )


def test_slabs_do_not_show(monkeypatch):
    scores, placement = _smooth_probabilities(4, (9, 10, 11)), _placement((9, 10, 11), (14, 23, 17))
    whole = export_labels(scores, placement)
    monkeypatch.setattr("medsegdiff_cli.imaging.sampling._SLAB_VOXELS", 3 * 23 * 17)
    np.testing.assert_array_equal(export_labels(scores, placement), whole)


def test_half_precision_and_other_memory_orders_give_the_same_labels():
    scores = _smooth_probabilities(4, (9, 10, 11)).astype(np.float16)
    placement = _placement((9, 10, 11), (14, 23, 17))
    expected = export_labels(scores.astype(np.float32), placement)
    np.testing.assert_array_equal(export_labels(scores, placement), expected)
    np.testing.assert_array_equal(export_labels(np.asfortranarray(scores), placement), expected)


def test_equal_scores_go_to_the_lowest_class():
    scores = np.full((3, 4, 4), 1 / 3, np.float32)
    assert (export_labels(scores, _placement((4, 4), (9, 7))) == 0).all()
    # The middle of three outputs lies halfway between a voxel of class 1 and one of class 2.
    halves = np.array([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    assert export_labels(halves, _placement((1, 2), (1, 3))).tolist() == [[1, 1, 2]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_separated_axis_takes_the_nearest_slice(axis):
    grid, native = (6, 7, 8), (13, 17, 11)
    scores = _smooth_probabilities(4, grid)
    between = tuple(grid[a] if a == axis else native[a] for a in range(3))
    in_plane = _by_skimage(scores, between)
    nearest = np.floor((np.arange(native[axis]) + 0.5) * grid[axis] / native[axis]).astype(int)
    ours = export_labels(scores, _placement(grid, native, nearest_axis=axis))
    _assert_equal_apart_from_ties(ours, in_plane.take(nearest, axis=axis + 1))


def test_more_than_255_classes_need_and_get_two_bytes():
    scores = np.zeros((300, 4, 4), np.float32)
    scores[299] = 1
    ours = export_labels(scores, _placement((4, 4), (8, 8)))
    assert ours.dtype == np.uint16
    assert (ours == 299).all()
    assert export_labels(scores[45:], _placement((4, 4), (8, 8))).max() == 254


@pytest.mark.parametrize(("grid", "native"), PAIRS)
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_regions_above_the_threshold_are_painted_in_order(grid, native, threshold):
    scores = np.stack([_smooth_probabilities(2, grid, seed)[1] for seed in range(3)])
    order = (2, 0, 1)
    ours = export_labels(scores, _placement(grid, native), exclusive=False, threshold=threshold, region_order=order)
    resized = _by_skimage(scores, native)
    expected = np.zeros(native, int)
    for region in order:
        expected[resized[region] > threshold] = region + 1
    is_tie = (np.abs(resized - threshold) < 1e-12).any(axis=0)
    assert ((ours != expected) & ~is_tie).sum() == 0


def test_without_an_order_later_regions_cover_earlier_ones():
    scores = np.ones((3, 2, 2), np.float32)
    scores[2, 0, 0] = 0.5  # not above 0.5
    ours = export_labels(scores, _placement((2, 2), (2, 2)), exclusive=False)
    assert ours.tolist() == [[2, 3], [3, 3]]


def test_maps_equal_torchs_interpolation_and_stay_in_range():
    for grid, native in PAIRS:
        values = _smooth_probabilities(2, grid)
        expected = _by_torch(values, native)
        ours = list(export_maps(values, _placement(grid, native)))
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        assert min(o.min() for o in ours) >= 0
        assert max(o.max() for o in ours) <= 1


def _settings(**changes) -> TransformSettings:
    base = TransformSettings(
        transpose=(1, 0),
        crop="none",
        channels=(PLAIN,),
        geometry="resize",
        size_voxels=(16, 24),
        interpolation="linear",
    )
    return replace(base, **changes)


def test_what_lies_outside_the_crop_is_background_and_the_fill_of_the_map():
    image = Image(array=np.zeros((1, 10, 12), np.float32), geometry=Geometry.plain((10, 12)))
    image.array[0, 2:7, 3:9] = 1
    placement = forward(image, _settings(crop="nonzero")).placement
    ours = export_labels(np.stack([np.zeros((16, 24)), np.ones((16, 24))]), placement)
    np.testing.assert_array_equal(ours, image.array[0])
    maps = list(export_maps(np.full((2, 16, 24), 0.25), placement, fill=[1.0, 0.0]))
    np.testing.assert_array_equal(maps[0], np.where(image.array[0] == 1, np.float32(0.25), 1))
    np.testing.assert_array_equal(maps[1], np.where(image.array[0] == 1, np.float32(0.25), 0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_aspect": True},
        {"keep_aspect": True, "centre_crop": (12, 30)},
        {"geometry": "spacing", "spacing_mm": (0.7, 1.3)},
        {"geometry": "spacing", "spacing_mm": (0.7, 1.3), "centre_crop": (60, 20)},
    ],
)
def test_a_ramp_comes_back_to_where_it_was(changes):
    # A linear function survives linear interpolation there and back, but for the outermost voxels (clamping).
    y, x = np.mgrid[:40, :50].astype(np.float32)
    image = Image(array=(3 * y + x)[None], geometry=Geometry.plain((40, 50)))
    transformed = forward(image, _settings(**changes))
    ours = export_map(transformed.image[0], transformed.placement, fill=np.nan)
    covered = np.isfinite(ours)
    assert covered.all() == ("centre_crop" not in changes)
    inner = ndimage.binary_erosion(covered, iterations=3)
    assert inner.sum() > 100
    np.testing.assert_allclose(ours[inner], image.array[0][inner], atol=1e-3)


def test_after_a_centre_crop_exactly_the_voxels_whose_centre_it_holds_are_decided():
    image = Image(array=np.zeros((1, 40), np.float32)[:, :, None], geometry=Geometry.plain((40, 1)))
    wanted = _settings(transpose=(0, 1), geometry="spacing", spacing_mm=(2.0, 1.0), centre_crop=(10, None))
    placement = forward(image, wanted).placement
    # 40 mm in 20 voxels of 2 mm, of which 5..14 are kept: 10 mm to 30 mm.
    ours = export_labels(np.stack([np.zeros((10, 1)), np.ones((10, 1))]), placement)
    assert np.flatnonzero(ours[:, 0]).tolist() == list(range(10, 30))


@pytest.mark.parametrize("native", [(40, 50), (13, 17)])
def test_a_window_on_the_resampled_image_equals_resizing_it_whole(native):
    # Rows 4..19 of 24 are kept (their scores continue outwards), columns -3..20 padded with zeros.
    grid, resampled = (16, 24), (24, 18)
    placement = replace(
        _placement(resampled, native), window=(slice(4, 20), slice(-3, 21)), geometry=Geometry.plain(native)
    )
    scores = np.zeros((4, *grid), np.float32)
    scores[:, :, 3:21] = _smooth_probabilities(4, (16, 18))
    whole = np.pad(scores[:, :, 3:21], ((0, 0), (4, 4), (0, 0)), mode="edge")
    plain = _by_skimage(whole, native)
    row_centres = (np.arange(native[0]) + 0.5) * 24 / native[0]
    kept = ((row_centres >= 4) & (row_centres < 20))[:, None] & np.ones(native, bool)
    ours = export_labels(scores, placement)
    assert (ours[~kept] == 0).all()
    _assert_equal_apart_from_ties(ours[kept], plain[:, kept])
    maps = np.stack(list(export_maps(scores, placement, fill=7.0)))
    np.testing.assert_allclose(maps, np.where(kept, plain, 7), atol=1e-6)


def _one_hot(label: np.ndarray, n_classes: int) -> np.ndarray:
    return (np.arange(n_classes).reshape(-1, *(1,) * label.ndim) == label).astype(np.float32)


@pytest.mark.fault("F37")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 3).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.tuples(*[st.integers(1, 10)] * n))),
    st.sampled_from(["none", "nonzero", "mask"]),
    st.sampled_from([None, 12, 30]),
    st.integers(0, 99),
)
def test_a_label_comes_back_unchanged_when_the_spacing_stays(axes, crop, centre_crop, seed):
    order, shape = axes
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, shape).astype(np.uint8)
    label[rng.random(shape) < 0.7] = 0
    image = Image(array=label[None].astype(np.float32), geometry=Geometry.plain(shape, (2.0,) * len(shape)))
    wanted = _settings(
        transpose=tuple(order),
        crop=crop,
        geometry="spacing",
        spacing_mm=(2.0,) * len(shape),
        centre_crop=None if centre_crop is None else (centre_crop,) * len(shape),
    )
    transformed = forward(image, wanted, label=label, mask=label > 0)
    scores = _one_hot(transformed.label, 4)
    np.testing.assert_array_equal(export_labels(scores, transformed.placement), label)
    regions = export_labels(scores[1:], transformed.placement, exclusive=False)
    np.testing.assert_array_equal(regions, label)


@pytest.mark.fault("F36")
@settings(max_examples=60, deadline=None)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.sampled_from([0.6, 1.0, 5.0])] * 3),
    st.sampled_from(["spacing", "resize"]),
    st.booleans(),
    st.sampled_from([None, (5, 4), (3, 20, 4)]),
)
def test_the_way_back_always_ends_on_the_native_grid(order, shape, spacing_mm, geometry, keep_aspect, centre_crop):
    wanted = _settings(
        transpose=tuple(order),
        geometry=geometry,
        spacing_mm=(None, 1.3, 0.8),
        size_voxels=(9, 6),
        keep_aspect=keep_aspect,
        centre_crop=centre_crop,
    )
    image = Image(array=np.ones((1, *shape), np.float32), geometry=Geometry.plain(shape, spacing_mm))
    placement = forward(image, wanted).placement
    scores = np.stack([np.zeros(placement.grid_shape), np.ones(placement.grid_shape)])
    labels, covered = export_labels(scores, placement), export_map(scores[1], placement)
    assert labels.shape == shape
    np.testing.assert_array_equal(labels, covered)
    assert labels.all() or centre_crop is not None


def test_memory_holds_no_array_of_classes_times_native_voxels():
    scores, native = _smooth_probabilities(24, (10, 24, 24)), (40, 96, 96)
    placement = _placement((10, 24, 24), native)
    tracemalloc.start()
    export_labels(scores, placement)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < scores.shape[0] * np.prod(native) * 4 / 2


def test_scores_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="do not lie on the grid"):
        export_labels(np.zeros((2, 3, 4)), _placement((4, 4), (8, 8)))
