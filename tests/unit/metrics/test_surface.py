import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import SimpleITK
from medpy.metric import binary

from medsegdiff_cli.metrics.overlap import overlap_of_masks
from medsegdiff_cli.metrics.surface import (
    SurfaceDistances,
    _nearest_by_transform,
    _nearest_by_tree,
    image_diagonal_mm,
    surface_distances,
)

SPACING_MM = {2: (0.7, 1.9), 3: (2.5, 0.8, 1.3)}
SHAPE = {2: (30, 26), 3: (18, 22, 20)}


def ellipsoid(shape: tuple[int, ...], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    squares = [((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)]
    return sum(squares) <= 1


def blobs(seed: int, n_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two overlapping ellipsoids."""
    random = np.random.default_rng(seed)
    shape = np.array(SHAPE[n_dims])
    centre, radii = shape / 2 + random.uniform(-2, 2, n_dims), random.uniform(4, 7, n_dims)
    moved, scaled = centre + random.uniform(-2, 2, n_dims), radii * random.uniform(0.8, 1.2, n_dims)
    return ellipsoid(tuple(shape), moved, scaled), ellipsoid(tuple(shape), centre, radii)


def brute_force_distances(points_of: np.ndarray, targets_of: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return all nearest distances by looking at every neighbour of every voxel, and at every pair of border voxels."""

    def border_of(mask: np.ndarray) -> np.ndarray:
        steps = [sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
        inside = {tuple(voxel) for voxel in np.argwhere(mask)}
        return np.array([voxel for voxel in sorted(inside) if any(tuple(voxel + s) not in inside for s in steps)])

    points, targets = border_of(points_of) * spacing_mm, border_of(targets_of) * spacing_mm
    return np.sqrt(((points[:, None] - targets[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_hausdorff_distance_equals_simpleitk_and_medpy(seed: int, n_dims: int) -> None:
    prediction, reference = blobs(seed, n_dims)
    distance = surface_distances(prediction, reference, SPACING_MM[n_dims]).hd()
    assert distance == pytest.approx(binary.hd(prediction, reference, SPACING_MM[n_dims]), abs=1e-9)
    # SimpleITK measures from every voxel of the mask; for blobs that cross, the farthest one is on the border.
    oracle, images = SimpleITK.HausdorffDistanceImageFilter(), []
    for mask in (prediction, reference):
        images.append(SimpleITK.GetImageFromArray(mask.astype(np.uint8)))
        images[-1].SetSpacing(SPACING_MM[n_dims][::-1])
    oracle.Execute(*images)
    assert distance == pytest.approx(oracle.GetHausdorffDistance(), abs=1e-5)


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_hd95_pooled_equals_medpy(seed: int, n_dims: int) -> None:
    prediction, reference = blobs(seed, n_dims)
    expected = binary.hd95(prediction, reference, SPACING_MM[n_dims])
    assert surface_distances(prediction, reference, SPACING_MM[n_dims]).hd95_pooled() == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_hd95_max_assd_and_nsd_equal_monai(seed: int, n_dims: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
    masks = blobs(seed, n_dims)
    spacing_mm, tolerance_mm = SPACING_MM[n_dims], 1.0
    prediction, reference = (torch.from_numpy(mask)[None, None].float() for mask in masks)
    options = {"include_background": True, "spacing": spacing_mm}
    distances = surface_distances(*masks, spacing_mm)
    hd95 = compute_hausdorff_distance(prediction, reference, percentile=95, **options)
    assert distances.hd95_max() == pytest.approx(hd95.item(), abs=1e-5)
    assd = compute_average_surface_distance(prediction, reference, symmetric=True, **options)
    assert distances.assd() == pytest.approx(assd.item(), abs=1e-5)
    nsd = compute_surface_dice(prediction, reference, [tolerance_mm], **options)
    assert distances.nsd(tolerance_mm) == pytest.approx(nsd.item(), abs=1e-6)


@pytest.mark.parametrize("block", range(5))
def test_distances_equal_brute_force_on_random_masks(block: int) -> None:
    random = np.random.default_rng(block)
    for _ in range(100):
        n_dims = int(random.integers(2, 4))
        shape, spacing_mm = tuple(random.integers(1, 9, n_dims)), random.uniform(0.3, 4, n_dims)
        prediction, reference = (random.random(shape) < random.uniform(0.05, 0.95) for _ in range(2))
        prediction.flat[random.integers(prediction.size)] = reference.flat[random.integers(reference.size)] = True
        distances = surface_distances(prediction, reference, spacing_mm)
        to_reference = brute_force_distances(prediction, reference, spacing_mm)
        to_prediction = brute_force_distances(reference, prediction, spacing_mm)
        np.testing.assert_allclose(distances.prediction_to_reference_mm, to_reference, atol=1e-12)
        np.testing.assert_allclose(distances.reference_to_prediction_mm, to_prediction, atol=1e-12)
        pooled = np.concatenate((to_reference, to_prediction))
        assert distances.hd() == pytest.approx(pooled.max(), abs=1e-12)
        assert distances.assd() == pytest.approx(pooled.sum() / len(pooled), abs=1e-12)
        assert distances.nsd(1.5) == np.count_nonzero(pooled <= 1.5) / len(pooled)


@pytest.mark.parametrize("seed", range(5))
def test_tree_and_transform_agree(seed: int) -> None:
    prediction, reference = blobs(seed, 3)
    by_tree = _nearest_by_tree(prediction, reference, SPACING_MM[3])
    np.testing.assert_allclose(by_tree, _nearest_by_transform(prediction, reference, SPACING_MM[3]), atol=1e-12)


@pytest.mark.parametrize(("edge", "shift"), [(10, 0), (10, 1), (10, 3), (7, 7)])
def test_a_shifted_cube_has_the_dice_and_hausdorff_distance_of_the_formula(edge: int, shift: int) -> None:
    spacing_mm = (1.5, 0.5, 2.0)
    reference = np.zeros((12, 12, 30), dtype=bool)
    reference[1 : 1 + edge, 1 : 1 + edge, 2 : 2 + edge] = True
    prediction = np.roll(reference, shift, axis=2)
    assert overlap_of_masks(prediction, reference).dice == (edge - shift) / edge
    assert surface_distances(prediction, reference, spacing_mm).hd() == pytest.approx(shift * spacing_mm[2])


def all_values(distances: SurfaceDistances) -> list[float]:
    return [distances.hd(), distances.hd95_pooled(), distances.hd95_max(), distances.assd(), distances.nsd(1.0)]


def test_two_empty_masks_are_undefined_everywhere() -> None:
    empty = np.zeros((4, 5), dtype=bool)
    distances = surface_distances(empty, empty, (1.0, 1.0))
    assert distances.undefined
    assert all(math.isnan(value) for value in all_values(distances))


@pytest.mark.parametrize("is_missed", [True, False])
def test_one_empty_mask_is_as_far_as_the_image_is_long(is_missed: bool) -> None:
    empty, one = np.zeros((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)
    one[1, 1] = True
    distances = surface_distances(*((empty, one) if is_missed else (one, empty)), (2.0, 2.0))
    diagonal_mm = math.sqrt((3 * 2) ** 2 + (4 * 2) ** 2)
    assert (distances.missed, distances.spurious, distances.undefined) == (is_missed, not is_missed, False)
    assert all_values(distances) == [diagonal_mm] * 4 + [0.0]


def test_equal_masks_are_at_distance_0_also_when_they_fill_the_image() -> None:
    full = np.ones((4, 5, 3), dtype=bool)
    distances = surface_distances(full, full, SPACING_MM[3])
    assert all_values(distances) == [0, 0, 0, 0, 1]
    # The outside counts as background: all but the 2 x 3 x 1 inner voxels are border.
    assert distances.prediction_to_reference_mm.size == 4 * 5 * 3 - 2 * 3 * 1


def test_single_voxels_are_as_far_as_their_centres() -> None:
    prediction, reference = np.zeros((2, 6, 6, 6), dtype=bool)
    prediction[0, 0, 0] = reference[1, 2, 3] = True
    distances = surface_distances(prediction, reference, (3.0, 2.0, 1.0))
    assert all_values(distances) == pytest.approx([math.sqrt(3**2 + 4**2 + 3**2)] * 4 + [0])


def test_touching_the_image_edge_does_not_change_distances() -> None:
    prediction, reference = blobs(0, 3)
    box = np.argwhere(prediction | reference)
    cropped = tuple(slice(start, stop + 1) for start, stop in zip(box.min(0), box.max(0), strict=True))
    whole = surface_distances(prediction, reference, SPACING_MM[3])
    edge = surface_distances(prediction[cropped], reference[cropped], SPACING_MM[3])
    assert all_values(edge) == all_values(whole)


def test_distances_scale_with_the_spacing_and_follow_permuted_axes() -> None:
    prediction, reference = blobs(3, 3)
    z_mm, y_mm, x_mm = SPACING_MM[3]
    plain = surface_distances(prediction, reference, (z_mm, y_mm, x_mm))
    doubled = surface_distances(prediction, reference, (2 * z_mm, 2 * y_mm, 2 * x_mm))
    turned = surface_distances(prediction.transpose(2, 0, 1), reference.transpose(2, 0, 1), (x_mm, z_mm, y_mm))
    assert all_values(doubled)[:4] == pytest.approx([2 * value for value in all_values(plain)[:4]])
    assert all_values(turned) == pytest.approx(all_values(plain))


def test_exchanging_prediction_and_reference_changes_nothing() -> None:
    prediction, reference = blobs(4, 2)
    there = surface_distances(prediction, reference, SPACING_MM[2])
    back = surface_distances(reference, prediction, SPACING_MM[2])
    assert all_values(there) == pytest.approx(all_values(back))


def test_a_distance_equal_to_the_tolerance_is_within_it() -> None:
    prediction, reference = np.zeros((2, 1, 8), dtype=bool)
    prediction[0, 0] = reference[0, 3] = True
    assert surface_distances(prediction, reference, (1.0, 0.7)).nsd(2.1) == 1.0


def test_the_diagonal_runs_from_edge_to_edge() -> None:
    assert image_diagonal_mm((3, 4), (1.0, 1.0)) == 5.0
