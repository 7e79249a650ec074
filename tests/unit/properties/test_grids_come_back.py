"""Whatever grid an image lies on, what is written for it lies on the same one; nibabel and SimpleITK say so."""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import write_image, write_label

VOXELS_XYZ = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
few = settings(max_examples=60, deadline=None, derandomize=True)
spacings = st.tuples(*[st.floats(0.1, 9)] * 3)
origins = st.tuples(*[st.floats(-500, 500)] * 3)
rotations = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01)


def copy_of(source: Path, target: Path) -> None:
    """Write the image and a label of it as a prediction would be written."""
    image = read_image(source)
    write_image(target, image)
    write_label(target.with_name(f"label_{target.name}"), np.ones(image.geometry.shape, np.uint8), image.geometry)


def grid_fields(path: Path) -> dict[str, bytes]:
    """Return the bytes of every header field that places the voxels, and the voxel edges."""
    header = nib.load(path).header
    names = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d")
    names += ("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")
    edges = {"pixdim": header["pixdim"][:4].tobytes(), "dim": header["dim"][1:4].tobytes()}
    return {name: header[name].tobytes() for name in names} | edges


@pytest.mark.fault("F33")
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_each_of_48_orientations_comes_back_bit_by_bit(tmp_path: Path, order, signs) -> None:
    axes = (np.eye(3)[:, order] * np.array(signs)) @ np.diag([0.5, 1.25, 6.0])
    affine = np.block([[axes, np.array([[-3.5], [7.25], [11.0]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    volume = nib.Nifti1Image(VOXELS_XYZ, affine)
    volume.set_qform(affine, code=1)
    volume.set_sform(affine, code=1)
    nib.save(volume, tmp_path / "in.nii.gz")
    copy_of(tmp_path / "in.nii.gz", tmp_path / "out.nii.gz")
    for name in ("out.nii.gz", "label_out.nii.gz"):
        assert grid_fields(tmp_path / name) == grid_fields(tmp_path / "in.nii.gz")
    first, second = (nib.as_closest_canonical(nib.load(tmp_path / name)) for name in ("in.nii.gz", "out.nii.gz"))
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    assert np.array_equal(first.affine, second.affine)


@pytest.mark.fault("F33")
@few
@given(rotations, spacings, origins, st.booleans(), st.sampled_from([(1, 1), (2, 0), (0, 1), (4, 1)]))
def test_any_oblique_grid_comes_back_bit_by_bit(quaternion, spacing, origin, mirrored, codes) -> None:
    axes = Rotation.from_quat(quaternion).as_matrix() @ np.diag(np.array(spacing) * [-1 if mirrored else 1, 1, 1])
    affine = np.block([[axes, np.array(origin)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    volume = nib.Nifti1Image(VOXELS_XYZ, None)
    volume.set_qform(affine, code=codes[1])
    volume.set_sform(affine, code=codes[0])
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.nii", Path(folder) / "out.nii"
        nib.save(volume, source)
        copy_of(source, target)
        assert grid_fields(target) == grid_fields(source)
        assert grid_fields(target.with_name("label_out.nii")) == grid_fields(source)
        assert np.array_equal(np.asarray(nib.load(target).dataobj), VOXELS_XYZ)


@few
@given(rotations, spacings, origins, st.sampled_from([".nrrd", ".mha", ".nii.gz"]))
def test_any_oblique_grid_passes_between_formats(quaternion, spacing, origin, ending) -> None:
    image = SimpleITK.GetImageFromArray(VOXELS_XYZ.T)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(Rotation.from_quat(quaternion).as_matrix().ravel().tolist())
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mha", Path(folder) / f"out{ending}"
        SimpleITK.WriteImage(image, str(source))
        write_image(target, read_image(source))
        again = SimpleITK.ReadImage(str(target))
        assert np.array_equal(SimpleITK.GetArrayFromImage(again), VOXELS_XYZ.T)
        # Text headers keep the digits; NIfTI has float32.
        assert largest_corner_distance_mm(read_geometry(source), read_geometry(target)) < 1e-3
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(again, name)(), getattr(image, name)(), rtol=1e-5, atol=5e-4)


@few
@given(rotations, spacings, origins)
def test_a_geometry_survives_its_plain_data(quaternion, spacing, origin) -> None:
    direction = tuple(Rotation.from_quat(quaternion).as_matrix().ravel().tolist())
    grid = Geometry(shape=(4, 3, 2), spacing_mm=spacing, origin_mm=origin, direction=direction)
    assert Geometry.from_json(grid.to_json()) == grid
    corner = grid.affine_itk() @ [1, 2, 3, 1]
    expected = np.reshape(direction, (3, 3)) @ (np.array([1, 2, 3]) * spacing[::-1]) + origin
    assert np.allclose(corner[:3], expected, rtol=1e-9, atol=1e-9)


@few
@given(st.integers(0, 2**16), st.sampled_from(["u1", "u2", "i2", "f4"]), st.sampled_from([".nii", ".nrrd", ".mha"]))
def test_voxels_of_any_type_come_back(seed, dtype, ending) -> None:
    array = np.random.default_rng(seed).integers(0, 200, (1, 3, 2, 4)).astype(dtype)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"image{ending}"
        write_image(path, Image(array=array, geometry=Geometry.plain((3, 2, 4), (2.0, 1.0, 0.5))))
        again = read_image(path)
        assert again.array.dtype == np.dtype(dtype)
        assert np.array_equal(again.array, array)
        assert np.array_equal(read_label(path).array, array.astype(int))
