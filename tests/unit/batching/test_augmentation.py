"""Random transforms of patches."""

import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.augmentation import Augmenter, SpatialDraw
from medsegdiff_cli.errors import UsageError

NONE = {f"p_{name}": 0.0 for name in ("rotation", "scaling", "translation", "noise", "blur", "brightness", "contrast")}
NONE |= {"p_low_resolution": 0.0, "p_gamma": 0.0, "p_gamma_inverted": 0.0, "mirror": False}
ALL = {name: 1.0 for name in NONE if name.startswith("p_")}


def settings(**changes: object) -> AugmentationSettings:
    return AugmentationSettings.model_validate({**NONE, **changes})


def region_of(array: np.ndarray, drawn: SpatialDraw, patch: tuple[int, ...]) -> np.ndarray:
    """The middle of `array`, patch and margins."""
    index = [slice(None)]
    for extent, edge, margin in zip(array.shape[1:], patch, drawn.margins_voxels, strict=True):
        start = (extent - edge) // 2 - margin
        assert start >= 0
        index.append(slice(start, start + edge + 2 * margin))
    return array[tuple(index)].copy()


def blobs(shape: tuple[int, ...], n_labels: int = 2) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 3)
    edges = np.quantile(smooth, np.linspace(0, 1, n_labels + 1)[1:-1])
    return np.digitize(smooth, edges).astype(np.uint8)


def test_without_probabilities_nothing_changes_and_batchgenerators_is_not_imported() -> None:
    code = f"""
import sys, numpy as np
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.augmentation import Augmenter
augmenter = Augmenter(AugmentationSettings(**{NONE!r}), (6, 8), (0, 1))
image, label = np.random.rand(2, 6, 8).astype("f4"), np.ones((1, 6, 8), "u1")
drawn = augmenter.draw(np.random.default_rng(0))
got = augmenter(image, label, drawn, 0)
assert got[0] is image and got[1] is label and drawn.margins_voxels == (0, 0)
assert not any(name.startswith("batchgenerators") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_and_running_every_transform_is_silent() -> None:
    code = f"""
import numpy as np
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.augmentation import Augmenter
augmenter = Augmenter(AugmentationSettings(**{ALL!r}), (16, 16), (0, 1))
drawn = augmenter.draw(np.random.default_rng(0))
region = tuple(16 + 2 * m for m in drawn.margins_voxels)
augmenter(np.random.rand(2, *region).astype("f4"), np.ones((1, *region), "u1"), drawn, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_the_result_depends_on_the_seed_alone_and_global_generators_are_put_back() -> None:
    augmenter = Augmenter(settings(**ALL, mirror=True), (16, 12, 14), (0, 1, 2))
    drawn = augmenter.draw(np.random.default_rng(1))
    shape = tuple(edge + 2 * margin for edge, margin in zip((16, 12, 14), drawn.margins_voxels, strict=True))
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    label = blobs(shape)[None]

    def run(seed: int) -> bytes:
        moved_image, moved_label = augmenter(image.copy(), label.copy(), drawn, seed)
        assert moved_label is not None
        assert (moved_image.dtype, moved_label.dtype) == (np.float32, np.uint8)
        return moved_image.tobytes() + moved_label.tobytes()

    np.random.seed(3)
    random.seed(3)
    first = run(7)
    after = (np.random.random(), random.random())
    np.random.seed(3)
    random.seed(3)
    assert after == (np.random.random(), random.random())
    assert run(7) == first
    assert run(8) != first


@pytest.mark.parametrize("patch", [(40, 48), (24, 24, 32), (4, 32, 32)])
def test_image_and_label_stay_aligned(patch: tuple[int, ...]) -> None:
    augmenter = Augmenter(settings(p_rotation=1.0, p_scaling=1.0, mirror=True), patch, tuple(range(len(patch))))
    label = blobs(tuple(3 * edge for edge in patch))[None]
    for seed in range(4):
        drawn = augmenter.draw(np.random.default_rng(seed))
        region = region_of(label, drawn, patch)
        image, moved = augmenter(region.astype(np.float32), region, drawn, seed)
        assert moved is not None
        assert image.shape == moved.shape == (1, *patch)
        assert np.corrcoef(image.ravel(), moved.ravel())[0, 1] > 0.95
        # Linear interpolation of 0 and 1 is above one half exactly where label 1 wins.
        clear = np.abs(image - 0.5) > 1e-6
        assert np.array_equal((image > 0.5)[clear], moved.astype(bool)[clear])


@pytest.mark.parametrize("patch", [(40, 48), (24, 20, 32), (4, 32, 32)])
def test_what_is_read_covers_every_rotation_and_scaling(patch: tuple[int, ...]) -> None:
    augmenter = Augmenter(settings(p_rotation=1.0, p_scaling=1.0), patch, ())
    for seed in range(8):
        drawn = augmenter.draw(np.random.default_rng(seed))
        shape = tuple(edge + 2 * margin for edge, margin in zip(patch, drawn.margins_voxels, strict=True))
        image, _ = augmenter(np.ones((1, *shape), np.float32), None, drawn, 0)
        assert np.allclose(image, 1, atol=1e-6)


def test_a_rotation_in_the_plane_equals_that_of_scipy() -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(64, 64)), 2)[None].astype(np.float32)
    augmenter = Augmenter(settings(p_rotation=1.0, rotation_degrees=20.0), (20, 24), ())
    drawn = augmenter.draw(np.random.default_rng(0))
    (angle,) = drawn.angles_rad
    moved, _ = augmenter(region_of(image, drawn, (20, 24)), None, drawn, 0)
    turned = [
        ndimage.rotate(image[0], np.rad2deg(sign * angle), reshape=False, order=1)[22:42, 20:44] for sign in (1, -1)
    ]
    assert min(np.abs(moved[0] - expected).max() for expected in turned) < 1e-5
    assert abs(np.rad2deg(angle)) > 1


def test_scaling_reads_further_apart() -> None:
    ramp = np.arange(64, dtype=np.float32)[None, None].repeat(64, axis=1)
    augmenter = Augmenter(settings(p_scaling=1.0, scaling=(1.25, 1.25)), (20, 20), ())
    drawn = augmenter.draw(np.random.default_rng(0))
    moved, _ = augmenter(region_of(ramp, drawn, (20, 20)), None, drawn, 0)
    assert drawn.scale == 1.25
    assert np.allclose(np.diff(moved[0], axis=1), 1.25, atol=1e-5)
    assert np.isclose(moved.mean(), 31.5, atol=1e-5)


def test_patches_move_by_whole_voxels_within_the_range_of_each_axis() -> None:
    patch = (16, 12, 14)
    each = Augmenter(settings(p_translation=1.0, translation_voxels=(4.0, 20.0, 0.0)), patch, ())
    shifts = np.array([each.draw(np.random.default_rng(seed)).shift_voxels for seed in range(300)])
    assert np.abs(shifts).max(axis=0).tolist() == [4, 20, 0]
    assert (shifts.min(axis=0) < 0).tolist() == [True, True, False]
    one = Augmenter(settings(p_translation=1.0, translation_voxels=4.0), patch, ())
    same = Augmenter(settings(p_translation=1.0, translation_voxels=(4.0, 4.0, 4.0)), patch, ())
    for seed in range(5):
        drawn = one.draw(np.random.default_rng(seed))
        assert drawn == same.draw(np.random.default_rng(seed))
        assert drawn.margins_voxels == (0, 0, 0), "moving reads elsewhere, not more"
    never = Augmenter(settings(translation_voxels=4.0), patch, ())
    assert never.draw(np.random.default_rng(0)).shift_voxels == (0, 0, 0)


def test_ranges_of_another_number_of_axes_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="translation_voxels"):
        Augmenter(settings(p_translation=1.0, translation_voxels=(4.0, 4.0)), (16, 12, 14), ())


def test_a_patch_of_thick_slices_turns_within_its_slices() -> None:
    augmenter = Augmenter(settings(p_rotation=1.0, p_scaling=1.0), (4, 16, 16), ())
    drawn = augmenter.draw(np.random.default_rng(0))
    assert drawn.margins_voxels[0] == 0
    shape = (4, *(16 + 2 * margin for margin in drawn.margins_voxels[1:]))
    slices = np.broadcast_to(np.arange(1, 5, dtype=np.float32)[:, None, None], shape)[None]
    image, _ = augmenter(slices.copy(), None, drawn, 0)
    assert np.allclose(image, np.arange(1, 5)[:, None, None], atol=1e-5)


def test_interpolated_labels_hold_no_invented_class() -> None:
    label = blobs((60, 60), 3)[None] * 2
    augmenter = Augmenter(settings(p_rotation=1.0, p_scaling=1.0), (20, 20), ())
    drawn = augmenter.draw(np.random.default_rng(2))
    _, moved = augmenter(
        region_of(label.astype(np.float32), drawn, (20, 20)), region_of(label, drawn, (20, 20)), drawn, 0
    )
    assert moved is not None
    assert set(np.unique(moved)) <= {0, 2, 4}


def test_mirroring_happens_along_allowed_axes_only() -> None:
    ramp = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    augmenter = Augmenter(settings(mirror=True), (4, 6), (1,))
    drawn = augmenter.draw(np.random.default_rng(0))
    results = {augmenter(ramp.copy(), None, drawn, seed)[0].tobytes() for seed in range(20)}
    assert results == {ramp.tobytes(), ramp[:, :, ::-1].tobytes()}


def test_probabilities_are_those_asked_for() -> None:
    augmenter = Augmenter(AugmentationSettings(), (16, 16), ())
    drawn = [augmenter.draw(np.random.default_rng(seed)) for seed in range(600)]
    # 0.2 each: 120 +- 39 (4 sigma of a binomial).
    assert 81 <= sum(any(d.angles_rad) for d in drawn) <= 159
    assert 81 <= sum(d.scale != 1 for d in drawn) <= 159
    scales = [d.scale for d in drawn if d.scale != 1]
    assert 0.7 <= min(scales) < 0.8
    assert 1.3 < max(scales) <= 1.4


@pytest.mark.parametrize(
    ("patch", "degrees", "n_angles"),
    [((32, 32, 32), 30, 3), ((8, 32, 32), 180, 1), ((32, 32), 180, 1), ((16, 32), 15, 1)],
)
def test_rotation_ranges_are_those_of_nnunet(patch: tuple[int, ...], degrees: float, n_angles: int) -> None:
    augmenter = Augmenter(settings(p_rotation=1.0), patch, ())
    angles = np.rad2deg([augmenter.draw(np.random.default_rng(seed)).angles_rad for seed in range(60)])
    assert angles.shape[1] == n_angles
    assert 0.85 * degrees < np.abs(angles).max() <= degrees


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_a_recipe_may_name_mirror_axes_of_its_own(axes: tuple[int, ...]) -> None:
    ramp = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    augmenter = Augmenter(settings(mirror=True, mirror_axes=axes), (4, 6), ())
    drawn = augmenter.draw(np.random.default_rng(0))
    results = {augmenter(ramp.copy(), None, drawn, seed)[0].tobytes() for seed in range(40)}
    ways = [np.flip(ramp, [axis + 1 for axis in axes if axis in chosen]) for chosen in ((), (0,), (1,), (0, 1))]
    assert results == {np.ascontiguousarray(way).tobytes() for way in ways}


def test_mirror_axes_that_a_patch_does_not_have_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be mirrored"):
        Augmenter(settings(mirror=True, mirror_axes=(2,)), (4, 6), ())
    assert Augmenter(settings(mirror_axes=(0, 1)), (4, 6), (0,))._intensity == [], "mirror: false switches it off"


@pytest.mark.parametrize("patch", [(40, 50), (20, 24, 30)])
def test_what_is_left_between_the_borders_is_stretched_to_the_patch(patch: tuple[int, ...]) -> None:
    augmenter = Augmenter(settings(p_border_crop=1.0, border_crop=0.2), patch, ())
    # The position of each voxel's middle, from 0 to 1 along each axis.
    axes = np.meshgrid(*((np.arange(edge) + 0.5) / edge for edge in patch), indexing="ij")
    image, label = np.stack(axes).astype(np.float32), (axes[0] > 0.5).astype(np.uint8)[None]
    for seed in range(5):
        drawn = augmenter.draw(np.random.default_rng(seed))
        assert drawn.margins_voxels == (0,) * len(patch)
        moved, moved_label = augmenter(image, label, drawn, seed)
        for axis, (low, high) in enumerate(drawn.border_crop):
            assert 0 <= low <= 0.2
            assert 0 <= high <= 0.2
            expected = low + (1 - low - high) * axes[axis]
            # The patch's own outermost middles bound what can be read.
            half = 0.5 / patch[axis]
            assert np.allclose(moved[axis], expected.clip(half, 1 - half), atol=1e-5)
        assert moved_label is not None
        clear = np.abs(moved[0] - 0.5) > 1.0 / patch[0]
        assert np.array_equal(moved_label[0].astype(bool)[clear], (moved[0] > 0.5)[clear])


def test_borders_are_drawn_for_every_side_within_the_range_and_disturb_no_other_draw() -> None:
    plain, cropping = (Augmenter(settings(p_rotation=0.5, p_border_crop=p), (16, 16), ()) for p in (0.0, 0.5))
    drawn = [(plain.draw(np.random.default_rng(s)), cropping.draw(np.random.default_rng(s))) for s in range(400)]
    assert all((a.angles_rad, a.scale, a.border_crop) == (b.angles_rad, b.scale, ()) for a, b in drawn)
    shares = np.array([b.border_crop for _, b in drawn if b.border_crop])
    # 200 +- 40 (4 sigma of a binomial).
    assert 160 <= len(shares) <= 240
    assert shares.min() >= 0
    assert 0.045 < shares.max() <= 0.05
    assert np.allclose(shares.mean(axis=0), 0.025, atol=0.005)
    assert AugmentationSettings.model_validate({**NONE, "p_border_crop": 0.1}).changes_images


@pytest.mark.parametrize("patch", [(40, 48), (24, 20, 32), (4, 32, 32)])
def test_a_border_crop_goes_with_rotation_and_meets_no_edge(patch: tuple[int, ...]) -> None:
    augmenter = Augmenter(settings(p_rotation=1.0, p_scaling=1.0, p_border_crop=1.0), patch, ())
    for seed in range(4):
        drawn = augmenter.draw(np.random.default_rng(seed))
        shape = tuple(edge + 2 * margin for edge, margin in zip(patch, drawn.margins_voxels, strict=True))
        image, _ = augmenter(np.ones((1, *shape), np.float32), None, drawn, 0)
        assert image.shape == (1, *patch)
        assert np.allclose(image, 1, atol=1e-6)
