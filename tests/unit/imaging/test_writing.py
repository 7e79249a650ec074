"""Written files are lossless, atomic and honest about what a format cannot hold."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import read_image
from medsegdiff_cli.imaging.writing import write_image, write_label

GRID = Geometry.plain((4, 5, 6), spacing_mm=(3.0, 2.0, 1.5))


@pytest.mark.parametrize(("largest", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")])
@pytest.mark.parametrize("given", ["int64", "float32"])
def test_a_label_takes_the_smallest_unsigned_type(tmp_path: Path, largest: int, dtype: str, given: str) -> None:
    label = np.zeros((4, 5, 6), given)
    label[1, 2, 3] = largest
    write_label(tmp_path / "case.nii.gz", label, GRID)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "case.nii.gz")))
    assert stored.dtype == dtype
    assert np.array_equal(stored, label)


def test_a_label_may_carry_its_channel_axis_and_be_boolean(tmp_path: Path) -> None:
    write_label(tmp_path / "case.mha", np.ones((1, 4, 5, 6), bool), GRID)
    assert read_image(tmp_path / "case.mha").array.sum() == 4 * 5 * 6


@pytest.mark.parametrize("value", [-1, 65536, 0.5, np.nan])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputDataError, match="label values"):
        write_label(tmp_path / "case.nii.gz", np.full((4, 5, 6), value), GRID)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_widened_without_loss(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 120, dtype=np.float16).reshape(1, 4, 5, 6)
    write_image(tmp_path / "case.nii.gz", Image(array=array, geometry=GRID))
    assert np.array_equal(read_image(tmp_path / "case.nii.gz").array, array.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("a.png", (1, 4, 5), "f4"), ("a.png", (2, 4, 5), "u1"), ("a.png", (1, 4, 5, 6), "u1"), ("a.bmp", (1, 4, 5), "u2")],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(InputDataError, match="cannot hold"):
        write_image(tmp_path / name, Image(array=np.zeros(shape, dtype), geometry=Geometry.plain(shape[1:])))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_ending_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.xyz"):
        write_image(tmp_path / "a.xyz", Image(array=np.zeros((1, 4, 5, 6)), geometry=GRID))


def test_nibabel_reads_the_grid_that_was_meant(tmp_path: Path) -> None:
    write_image(tmp_path / "case.nii.gz", Image(array=np.zeros((1, 4, 5, 6), np.int16), geometry=GRID))
    image = nib.load(tmp_path / "case.nii.gz")
    # ITK's x and y point to the left and back (LPS), NIfTI's to the right and front (RAS).
    assert np.array_equal(image.affine, np.diag([-1.5, -2.0, 3.0, 1.0]))
    assert np.allclose(image.header.get_qform(), image.affine)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_several_channels_become_the_fourth_axis_of_nifti(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)
    write_image(tmp_path / "case.nii.gz", Image(array=array, geometry=GRID))
    assert np.array_equal(np.asarray(nib.load(tmp_path / "case.nii.gz").dataobj), array.transpose(3, 2, 1, 0))
    assert np.array_equal(read_image(tmp_path / "case.nii.gz", channels_last_axis=True).array, array)


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.mha"
    write_label(path, np.zeros((4, 5, 6), np.uint8), GRID)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("SimpleITK.WriteImage", fail)
    with pytest.raises(KeyboardInterrupt):
        write_label(path, np.ones((4, 5, 6), np.uint8), GRID)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
