"""NIfTI files are read as SimpleITK places them, and refused when anything about them is wrong.

SimpleITK is the oracle for grids and values, nibabel and gzip build the files.
"""

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nifti_files import (
    AUX_FILE,
    BITPIX,
    DATATYPE,
    DB_NAME,
    DESCRIP,
    DIM,
    INTENT_NAME,
    INTERCEPT,
    MAGIC,
    PIXDIM,
    QFORM_CODE,
    SLOPE,
    SROW_X,
    UNITS,
    VOX_OFFSET,
    VOXELS_XYZ,
    affine_of,
    patched,
    rotation,
    write_nibabel,
)

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.imaging.reading import read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import write_image


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_nibabel(tmp_path / "case.nii.gz", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]))


def assert_as_simpleitk(path: Path) -> None:
    ours, oracle = read_image(path), sitk.ReadImage(str(path))
    assert np.array_equal(ours.array[0], sitk.GetArrayFromImage(oracle))
    assert ours.array.dtype == sitk.GetArrayFromImage(oracle).dtype
    assert np.allclose(ours.geometry.spacing_mm[::-1], oracle.GetSpacing(), rtol=1e-6, atol=0)
    assert np.allclose(ours.geometry.origin_mm, oracle.GetOrigin(), rtol=1e-6, atol=1e-4)
    assert np.allclose(ours.geometry.direction, oracle.GetDirection(), rtol=0, atol=2e-6)
    assert read_geometry(path) == ours.geometry


@pytest.mark.fault("F40")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    degrees=st.tuples(*[st.floats(-60, 60)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1), (4, 2)]),
    unit=st.sampled_from(["mm", "meter", "micron", "unknown"]),
)
def test_any_orientation_is_placed_as_simpleitk_places_it(
    tmp_path: Path,
    order: list[int],
    signs: tuple[float, ...],
    degrees: tuple[float, float, float],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    codes: tuple[int, int],
    unit: str,
) -> None:
    axes = rotation(degrees) @ np.eye(3)[:, order] * np.array(signs) * np.array(spacing)
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, affine_of(axes, origin), *codes)
    patched(path, UNITS, {"unknown": 0, "meter": 1, "mm": 2, "micron": 3}[unit], "u1")
    ours, oracle = read_image(path), sitk.ReadImage(str(path))
    scale = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    assert np.array_equal(ours.array[0], sitk.GetArrayFromImage(oracle))
    assert np.allclose(ours.geometry.spacing_mm[::-1], oracle.GetSpacing(), rtol=1e-6, atol=0)
    assert np.allclose(ours.geometry.origin_mm, oracle.GetOrigin(), rtol=1e-6, atol=1e-4 * scale)
    # Near half a turn a quaternion of float32 numbers is exact to the root of their precision only.
    exactness = 2e-6 if codes in [(1, 1), (1, 0)] else 5e-4
    assert np.allclose(ours.geometry.direction, oracle.GetDirection(), rtol=0, atol=exactness)
    assert np.allclose(ours.geometry.spacing_mm[::-1], np.array(spacing) * scale, rtol=1e-5)


@pytest.mark.fault("F28")
def test_neither_form_set_means_pixdim_without_a_flip(tmp_path: Path) -> None:
    path = write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, np.diag([2.0, 3.0, 4.0, 1.0]), 0, 0)
    geometry = read_geometry(path)
    assert geometry.spacing_mm == (4.0, 3.0, 2.0)
    assert geometry.direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert (geometry.file_header["sform_code"], geometry.file_header["qform_code"]) == (0, 0)
    assert_as_simpleitk(path)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_voxel_type_in_both_byte_orders_keeps_its_dtype(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 1, 1]), header, dtype=array.dtype), tmp_path / "case.nii")
    back = read_image(tmp_path / "case.nii").array
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back[0], array.T)


def test_scaled_voxels_become_float32_as_in_simpleitk(plain: Path) -> None:
    patched(plain, SLOPE, [0.125, -7.0], "<f4")
    assert read_image(plain).array.dtype == np.float32
    assert_as_simpleitk(plain)


@pytest.mark.fault("F18")
def test_a_slope_of_zero_means_unscaled(plain: Path) -> None:
    patched(plain, SLOPE, [0.0, 5.0], "<f4")
    assert np.array_equal(read_image(plain).array[0], VOXELS_XYZ.T)


@pytest.mark.fault("F11")
def test_nifti_2_is_read_and_written_with_its_full_precision(tmp_path: Path) -> None:
    affine = affine_of(np.diag([0.1, 0.2, 0.3]), (1 / 3, 2 / 3, 4 / 3))
    image = nib.Nifti2Image(VOXELS_XYZ, affine)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "case.nii.gz")
    back = read_image(tmp_path / "case.nii.gz")
    assert np.array_equal(back.array[0], VOXELS_XYZ.T)
    write_image(tmp_path / "again.nii.gz", back)
    assert np.array_equal(nib.load(tmp_path / "again.nii.gz").affine, affine)


@pytest.mark.fault("F15")
@pytest.mark.parametrize("shape_xyz", [(7, 6), (7, 6, 1), (1, 1, 5), (7, 6, 5, 1)])
def test_axes_in_space_are_kept_and_a_single_time_step_is_dropped(tmp_path: Path, shape_xyz: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape_xyz), dtype=np.int16).reshape(shape_xyz)
    path = write_nibabel(tmp_path / "case.nii", array, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert read_image(path).geometry.shape == shape_xyz[:3][::-1]
    assert_as_simpleitk(path)


@pytest.mark.fault("F15")
def test_a_fourth_axis_is_refused_unless_asked_for_as_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9, (4, 3, 2, 3)).astype(np.int16)
    path = write_nibabel(tmp_path / "case.nii.gz", array, np.eye(4))
    with pytest.raises(InputDataError, match="3 volumes in one file"):
        read_image(path)
    assert np.array_equal(read_image(path, channels_last_axis=True).array, array.transpose(3, 2, 1, 0))


@pytest.mark.fault("F01", "F02", "F06")
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str, fraction: float) -> None:
    path = write_nibabel(tmp_path / f"case{ending}", VOXELS_XYZ, np.eye(4))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputDataError, match="case"):
        read_image(path)


@pytest.mark.fault("F07")
def test_a_file_that_is_all_header_is_refused(plain: Path) -> None:
    plain.write_bytes(plain.read_bytes()[:352])
    with pytest.raises(InputDataError, match="holds 352 bytes where its header announces 772"):  # 352 + 7*6*5*2
        read_image(plain)


@pytest.mark.fault("F03")
def test_no_flipped_bit_of_the_compressed_stream_changes_what_is_read(packed: Path) -> None:
    content = packed.read_bytes()
    n_refused = 0
    # The first ten bytes are the gzip header, whose time stamp and system byte mean nothing.
    for place in range(10, len(content)):
        packed.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            # A few bits of a DEFLATE stream mean nothing (unused codes, padding).
            assert np.array_equal(read_image(packed).array[0], VOXELS_XYZ.T)
        except InputDataError:
            n_refused += 1
    assert n_refused > 0.98 * (len(content) - 10)


@pytest.mark.fault("F03")
def test_a_wrong_checksum_is_refused(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-8] ^= 1
    packed.write_bytes(content)
    with pytest.raises(InputDataError, match="data check"):
        read_image(packed)


@pytest.mark.fault("F05")
@pytest.mark.parametrize("trailer", [b"\0", b"x" * 999])
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_trailing_bytes_are_refused(request: pytest.FixtureRequest, name: str, trailer: bytes) -> None:
    path: Path = request.getfixturevalue(name)
    path.write_bytes(path.read_bytes() + trailer)
    with pytest.raises(InputDataError, match=r"follow the end|where its header announces"):
        read_image(path)


@pytest.mark.fault("F05")
def test_more_voxels_than_announced_are_refused(packed: Path) -> None:
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()) + b"\0"))
    with pytest.raises(InputDataError, match="holds more than the 772 bytes"):
        read_image(packed)


@pytest.mark.fault("F02")
@pytest.mark.parametrize("lost", [1, 100, 420])
def test_a_sound_gzip_of_fewer_voxels_than_announced_is_refused(packed: Path, lost: int) -> None:
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes())[:-lost]))
    with pytest.raises(InputDataError, match=f"holds {772 - lost} bytes where its header announces 772"):
        read_image(packed)


@pytest.mark.fault("F05")
def test_gzip_members_in_a_row_are_one_stream(packed: Path) -> None:
    whole = gzip.decompress(packed.read_bytes())
    packed.write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    assert np.array_equal(read_image(packed).array[0], VOXELS_XYZ.T)


@pytest.mark.fault("F13")
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_an_absurd_size_is_refused_before_memory_is_taken(request: pytest.FixtureRequest, name: str) -> None:
    path = patched(request.getfixturevalue(name), DIM, [3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2")
    tracemalloc.start()
    with pytest.raises(InputDataError, match=str(352 + 30000**3 * 2)):
        read_image(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.fault("F23")
@pytest.mark.parametrize(("shape", "message"), [((7, 6, 5), "are too many for"), ((99, 99, 99), "holds more than")])
def test_a_bomb_behind_a_small_header_is_not_inflated(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    noise = np.random.default_rng(0).integers(-999, 999, shape).astype(np.int16)
    path = write_nibabel(tmp_path / "case.nii.gz", noise, np.eye(4))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(300_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(InputDataError, match=message):
        read_image(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 30_000_000


FAULTS = {
    "not NIfTI": ("F09", 0, 12345, "<i4", "not a NIfTI file"),
    "magic": ("F09", MAGIC, b"abcd", "S4", "magic"),
    "Analyze": ("F09", MAGIC, b"\0\0\0\0", "S4", "magic"),
    "two files": ("F09", MAGIC, b"ni1\0", "S4", "two-file"),
    "no axes": ("F12", DIM, 0, "<i2", "no valid size"),
    "eight axes": ("F12", DIM, 8, "<i2", "no valid size"),
    "minus one axis": ("F12", DIM, -1, "<i2", "no valid size"),
    "one axis": ("F12", DIM, 1, "<i2", "single axis"),
    "negative size": ("F14", DIM + 2, -7, "<i2", "no valid size"),
    "size 0": ("F14", DIM + 4, 0, "<i2", "no valid size"),
    "complex voxels": ("F16", DATATYPE, 32, "<i2", "complex"),
    "RGB voxels": ("F16", DATATYPE, 128, "<i2", "RGB"),
    "unknown voxels": ("F16", DATATYPE, 77, "<i2", "unknown"),
    "bits": ("F16", BITPIX, 8, "<i2", "bitpix 8"),
    "offset inside the header": ("F17", VOX_OFFSET, 100, "<f4", "vox_offset 100"),
    "offset negative": ("F17", VOX_OFFSET, -100, "<f4", "vox_offset -100"),
    "offset NaN": ("F17", VOX_OFFSET, np.nan, "<f4", "vox_offset nan"),
    "offset huge": ("F17", VOX_OFFSET, 1e30, "<f4", "vox_offset 1"),
    "slope NaN": ("F18", SLOPE, np.nan, "<f4", "scl_slope nan"),
    "intercept infinite": ("F18", INTERCEPT, np.inf, "<f4", "scl_inter inf"),
    "unit": ("F40", UNITS, 5, "u1", "xyzt_units 5"),
    "affine NaN": ("F27", SROW_X, np.nan, "<f4", "not finite"),
    "affine singular": ("F27", SROW_X, [0.0, 0, 0, 0], "<f4", "voxels apart|inverted"),
    "pixdim negative": ("F35", PIXDIM + 4, -2.0, "<f4", "voxel edge -2"),
    "forms in conflict": ("F29", SROW_X + 12, 0.5, "<f4", "place the image 0.25 voxels apart"),  # 0.5 mm / 2 mm
}


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.fault(FAULTS[f][0]), id=f) for f in FAULTS])
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_faulty_header_is_refused_by_name(request: pytest.FixtureRequest, name: str, fault: str) -> None:
    _, place, value, dtype, message = FAULTS[fault]
    path = patched(request.getfixturevalue(name), place, value, dtype)
    for read in (read_image, read_geometry):
        with pytest.raises(InputDataError, match=message) as refusal:
            read(path)
        assert refusal.value.where == str(path)
        assert refusal.value.fix


@pytest.mark.fault("F29")
def test_a_form_with_code_zero_cannot_conflict(plain: Path) -> None:
    patched(patched(plain, SROW_X + 12, 50.0, "<f4"), QFORM_CODE, 0, "<i2")
    assert read_geometry(plain).origin_mm == (-50.0, 0.0, 0.0)


@pytest.mark.fault("F27")
def test_a_singular_sform_alone_is_refused(plain: Path) -> None:
    patched(patched(plain, SROW_X, [0.0, 0, 0, 0], "<f4"), QFORM_CODE, 0, "<i2")
    with pytest.raises(InputDataError, match="cannot be inverted"):
        read_image(plain)


@pytest.mark.fault("F19")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused_with_their_count(tmp_path: Path, value: float) -> None:
    array = np.zeros((4, 3, 2), np.float32)
    array[1, 1, :] = value
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii.gz")
    with pytest.raises(InputDataError, match="2 voxels are NaN or infinite"):
        read_image(tmp_path / "case.nii.gz")


@pytest.mark.fault("F33")
def test_what_is_written_carries_the_affine_bit_by_bit_and_no_patient_data(plain: Path, tmp_path: Path) -> None:
    axes = rotation((11.0, -23.0, 47.0)) * np.array([0.7, 0.8, 1.1])
    write_nibabel(plain, VOXELS_XYZ, affine_of(axes, (1.1, 2.2, 3.3)), 2, 4)
    secret = b"DOE^JANE"
    for place in (DB_NAME, DESCRIP, AUX_FILE, INTENT_NAME):
        patched(plain, place, secret, "S8")
    patched(plain, UNITS, 2 | 8, "u1")
    image = read_image(plain)
    assert "DOE" not in str(image.geometry.to_json())
    write_image(tmp_path / "out.nii", image)
    source, written = plain.read_bytes(), (tmp_path / "out.nii").read_bytes()
    assert secret in source
    assert secret not in written
    assert source[QFORM_CODE:INTENT_NAME] == written[QFORM_CODE:INTENT_NAME]  # codes, quaternion, offsets, srow
    assert source[PIXDIM : PIXDIM + 16] == written[PIXDIM : PIXDIM + 16]
    assert source[UNITS] == written[UNITS]
    assert source[352:] == written[352:]


def test_a_grid_that_changed_since_reading_is_not_written_with_the_old_affine(plain: Path, tmp_path: Path) -> None:
    image = read_image(plain)
    cropped = {**image.geometry.to_json(), "shape": [5, 6, 4], "origin_mm": [-6.0, 0.0, 0.0]}  # 3 voxels of 2 mm
    geometry = type(image.geometry).from_json(cropped)
    write_image(tmp_path / "out.nii.gz", Image(array=image.array[..., 3:], geometry=geometry))
    assert sitk.ReadImage(str(tmp_path / "out.nii.gz")).GetOrigin() == (-6.0, 0.0, 0.0)


@pytest.mark.fault("F81")
def test_a_float_label_is_rounded_only_when_it_is_nearly_whole(tmp_path: Path) -> None:
    label = np.array([[[0.0, 1.0004, 1.9999]]], np.float32)
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "case.nii.gz")
    assert read_label(tmp_path / "case.nii.gz").array.ravel().tolist() == [0, 1, 2]
    nib.save(nib.Nifti1Image(label + np.float32(0.5), np.eye(4)), tmp_path / "case.nii.gz")
    with pytest.raises(InputDataError, match=r"label value 0\.5 is no integer"):
        read_label(tmp_path / "case.nii.gz")
