"""Grids that no scanner makes are refused, small shears taken away on demand, and guesses are told."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nifti_files import PIXDIM, SROW_X, UNITS, VOXELS_XYZ, patched, write_nibabel, write_sheared

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.grid_checks import notes_on
from medsegdiff_cli.imaging.reading import read_geometry, read_image
from medsegdiff_cli.imaging.writing import write_image


@pytest.mark.fault("F34")
def test_a_shear_is_refused_with_its_angle_and_a_small_one_can_be_taken_away(tmp_path: Path) -> None:
    path = write_sheared(tmp_path / "case.nii.gz", 0.8)
    with pytest.raises(InputDataError, match=r"0\.8 degrees off a right angle[\s\S]*--fix-affine") as refusal:
        read_image(path)
    assert "--max-shear" not in str(refusal.value)
    rigid = read_image(path, fix_affine=1.0)
    direction = np.reshape(rigid.geometry.direction, (3, 3))
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    # The nearest rotation splits the angle between both axes.
    assert direction[0, 0] == pytest.approx(-np.cos(np.radians(0.4)))
    write_image(tmp_path / "rigid.nii.gz", rigid)
    oracle = sitk.ReadImage(str(tmp_path / "rigid.nii.gz"))
    assert oracle.GetDirection() == pytest.approx(rigid.geometry.direction, abs=2e-6)
    assert np.array_equal(sitk.GetArrayFromImage(oracle), VOXELS_XYZ.T)


@pytest.mark.fault("F34")
def test_a_shear_of_more_than_a_degree_needs_a_further_word(tmp_path: Path) -> None:
    path = write_sheared(tmp_path / "case.nii.gz", 2.0)
    for degrees in (0.0, 1.0):
        with pytest.raises(InputDataError, match=r"2 degrees off a right angle[\s\S]*--max-shear 2"):
            read_image(path, fix_affine=degrees)
    assert read_geometry(path, fix_affine=3.0).spacing_mm == pytest.approx((1.0, 1 / np.cos(np.radians(2)), 1.0))


@pytest.mark.fault("F34")
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_shear_in_other_formats_is_refused_too(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(VOXELS_XYZ.T)
    lean = np.radians(0.8)
    image.SetDirection([1.0, np.sin(lean), 0.0, 0.0, np.cos(lean), 0.0, 0.0, 0.0, 1.0])
    path = tmp_path / f"case{ending}"
    sitk.WriteImage(image, str(path))
    for read in (read_image, read_geometry):
        with pytest.raises(InputDataError, match=r"0\.8 degrees off a right angle"):
            read(path)
    direction = np.reshape(read_image(path, fix_affine=1.0).geometry.direction, (3, 3))
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-12)


@pytest.mark.fault("F39")
@pytest.mark.parametrize("edge_mm", [1e-9, 1e6])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_absurd_spacing_is_refused_in_every_format(tmp_path: Path, edge_mm: float, ending: str) -> None:
    path = tmp_path / f"case{ending}"
    image = sitk.GetImageFromArray(VOXELS_XYZ.T)
    image.SetSpacing([1.0, edge_mm, 1.0])
    sitk.WriteImage(image, str(path))
    for read in (read_image, read_geometry):
        with pytest.raises(InputDataError, match="absurd spacing"):
            read(path)


@pytest.mark.fault("F39")
def test_electron_microscopy_and_a_topogram_are_no_absurdities(tmp_path: Path) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([4e-6, 4e-6, 3e-5, 1.0]))
    assert read_geometry(path).spacing_mm == pytest.approx((3e-5, 4e-6, 4e-6))
    write_nibabel(path, VOXELS_XYZ, np.diag([1.0, 1.0, 450.0, 1.0]))
    assert read_geometry(path).spacing_mm == (450.0, 1.0, 1.0)


def test_a_sound_file_has_no_note(tmp_path: Path) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert notes_on(read_geometry(path)) == ()
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS_XYZ.T), str(tmp_path / "case.mha"))
    assert notes_on(read_geometry(tmp_path / "case.mha")) == ()


@pytest.mark.fault("F28")
def test_a_file_without_an_affine_is_told(tmp_path: Path) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]), 0, 0)
    (note,) = notes_on(read_image(path).geometry)
    assert "no affine" in note


@pytest.mark.fault("F35")
@pytest.mark.parametrize("edge", [2.5, np.nan, 0.0])
def test_a_pixdim_that_contradicts_the_sform_gives_way_and_is_told(tmp_path: Path, edge: float) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]), 1, 0)
    patched(path, PIXDIM + 12, edge, "<f4")
    geometry = read_image(path).geometry
    assert geometry.spacing_mm == (4.0, 3.0, 2.0)
    (note,) = notes_on(geometry)
    assert "the affine 2 x 3 x 4 mm" in note


@pytest.mark.fault("F40")
@pytest.mark.parametrize(("code", "name", "factor"), [(1, "metres", 1000.0), (3, "micrometres", 0.001)])
def test_other_units_are_converted_and_told(tmp_path: Path, code: int, name: str, factor: float) -> None:
    path = patched(write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0])), UNITS, code, "u1")
    geometry = read_geometry(path)
    assert geometry.spacing_mm == pytest.approx((4 * factor, 3 * factor, 2 * factor))
    assert [name in note for note in notes_on(geometry)] == [True]


@pytest.mark.fault("F29")
def test_a_conflict_of_both_forms_ends_with_the_sform_on_demand(tmp_path: Path) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]))
    patched(path, SROW_X + 12, 50.0, "<f4")
    with pytest.raises(InputDataError, match="--fix-affine"):
        read_geometry(path)
    assert read_geometry(path, fix_affine=1.0).origin_mm == (-50.0, 0.0, 0.0)
