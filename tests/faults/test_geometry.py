"""Where voxels are: oblique grids come back bit by bit, and no axis order changes what is segmented."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nifti_files import affine_of, rotation, write_nibabel

from medsegdiff_cli.imaging.export import export_labels
from medsegdiff_cli.imaging.reading import read_image
from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings, forward
from medsegdiff_cli.imaging.writing import write_label

SHAPE_XYZ = (7, 6, 5)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def phantom() -> np.ndarray:
    """Return a block that no flip or exchange of axes maps to itself."""
    voxels = np.random.default_rng(0).normal(0, 5, SHAPE_XYZ).astype(np.float32)
    voxels[1:3, 2:6, 0:4] += 100
    voxels[0, 0, 0] += 100
    return voxels


def stored_along(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the phantom with its axes exchanged and flipped, and the affine that leaves every voxel in its place."""
    voxels, affine = phantom(), affine_of(rotation((10.0, -20.0, 30.0)) * 2.0, (-30.0, 12.5, 7.0))
    exchange = np.eye(4)
    exchange[:3, :3] = np.eye(3)[:, order]
    for axis, sign in enumerate(signs):
        if sign < 0:
            exchange[order[axis], axis], exchange[order[axis], 3] = -1.0, SHAPE_XYZ[order[axis]] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    return np.ascontiguousarray(voxels.transpose(order)[flips]), affine @ exchange


def segmented(path: Path) -> SimpleITK.Image:
    """Read, normalise, segment by a threshold (no axis is preferred) and write, as a prediction does."""
    image = read_image(path)
    wanted = TransformSettings(
        transpose=(1, 2, 0),
        crop="nonzero",
        channels=(ChannelScheme(name="MR", scheme="zscore"),),
        geometry="spacing",
        spacing_mm=(2.0, 2.0, 2.0),
    )
    transformed = forward(image, wanted)
    scores = np.stack([0 * transformed.image[0] + 0.5, transformed.image[0]])
    target = path.with_name(f"label_{path.name}")
    write_label(target, export_labels(scores, transformed.placement), image.geometry)
    return SimpleITK.ReadImage(str(target))


@pytest.mark.fault("F32")
def test_any_of_48_axis_orders_gets_the_same_segmentation(tmp_path: Path) -> None:
    expected = None
    for index, (order, signs) in enumerate(ORIENTATIONS):
        voxels, affine = stored_along(order, signs)
        path = write_nibabel(tmp_path / f"{index}.nii.gz", voxels, affine)
        label = segmented(path)
        source = SimpleITK.ReadImage(str(path))
        assert label.GetSize() == source.GetSize()
        assert label.GetDirection() == source.GetDirection()
        upright = SimpleITK.DICOMOrient(label, "LPS")
        array = SimpleITK.GetArrayFromImage(upright)
        if expected is None:
            expected = upright.GetOrigin(), array
            assert array.sum() == 33  # the block of 2 x 4 x 4 and the odd voxel
        assert upright.GetOrigin() == pytest.approx(expected[0], abs=1e-4)
        assert np.array_equal(array, expected[1])


def written_again(path: Path) -> nib.Nifti1Image:
    image = read_image(path)
    target = path.with_name("label.nii.gz")
    write_label(target, np.zeros(image.geometry.shape, np.uint8), image.geometry)
    return nib.load(target)


@pytest.mark.fault("F33")
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (0, 1), (1, 0)])
def test_an_oblique_anisotropic_grid_comes_back_bit_by_bit(tmp_path: Path, codes: tuple[int, int]) -> None:
    axes = rotation((37.0, 0.0, 0.0)) * np.array([0.5, 0.5, 6.0])
    path = write_nibabel(tmp_path / "case.nii.gz", phantom(), affine_of(axes, (-101.3, 88.7, -41.9)), *codes)
    source, label = nib.load(path), written_again(path)
    assert np.array_equal(label.affine, source.affine)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_z", "xyzt_units"):
        assert np.array_equal(label.header[field], source.header[field])
    assert np.array_equal(label.header["pixdim"][:4], source.header["pixdim"][:4])


@pytest.mark.fault("F33", "F32")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(-89, 89)] * 3),
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_any_affine_comes_back_bit_by_bit(tmp_path, order, signs, degrees, spacing, origin) -> None:
    axes = rotation(degrees) @ np.eye(3)[:, order] * np.array(signs) * np.array(spacing)
    path = write_nibabel(tmp_path / "case.nii.gz", phantom(), affine_of(axes, origin))
    assert np.array_equal(written_again(path).affine, nib.load(path).affine)


@pytest.mark.fault("F36")
@pytest.mark.parametrize("shape_xyz", [(1, 1, 1), (2, 2, 2), (9, 8, 1), (1, 8, 9), (30, 2, 3)])
def test_single_slices_and_tiny_volumes_come_back_exactly(tmp_path: Path, shape_xyz: tuple[int, ...]) -> None:
    voxels = np.arange(np.prod(shape_xyz), dtype=np.int16).reshape(shape_xyz) % 3
    path = write_nibabel(tmp_path / "case.nii.gz", voxels.astype(np.uint8), np.diag([2.0, 3.0, 4.0, 1.0]))
    image = read_image(path)
    wanted = TransformSettings(
        transpose=(0, 1, 2),
        crop="none",
        channels=(ChannelScheme(name="MR", scheme="none"),),
        geometry="spacing",
        spacing_mm=(4.0, 3.0, 2.0),
        centre_crop=(8, 8, 8),  # what is smaller is padded, what is larger is background afterwards
    )
    transformed = forward(image, wanted)
    scores = np.stack([transformed.image[0] == value for value in range(3)]).astype(np.float32)
    back = export_labels(scores, transformed.placement)
    inside = tuple(slice((n - 8) // 2, (n - 8) // 2 + 8) if n > 8 else slice(None) for n in back.shape)
    assert back.shape == shape_xyz[::-1]
    assert np.array_equal(back[inside], voxels.T[inside])
