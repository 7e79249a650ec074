"""NIfTI files that lie, are cut or would swallow the memory: each is accepted as what it is, or refused by name."""

import gzip
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nifti_files import (
    DATATYPE,
    DIM,
    HEADER_BYTES,
    INTENT_NAME,
    MAGIC,
    PIXDIM,
    QFORM_CODE,
    SLOPE,
    SROW_X,
    VOX_OFFSET,
    VOXELS_PLACE,
    VOXELS_XYZ,
    patched,
    write_nibabel,
)

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.reading import read_image

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
N_BYTES = VOXELS_PLACE + VOXELS_XYZ.nbytes
# A test of seconds would fail here only if reading a few hundred bytes hung.
LONGEST_S = 5.0


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_nibabel(tmp_path / "case.nii", VOXELS_XYZ, AFFINE)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_nibabel(tmp_path / "case.nii.gz", VOXELS_XYZ, AFFINE)


@pytest.mark.fault("F01")
@pytest.mark.parametrize("percent", [50, 90])
def test_a_cut_file_is_refused_with_the_bytes_expected_and_found(plain: Path, percent: int) -> None:
    n_left = N_BYTES * percent // 100
    plain.write_bytes(plain.read_bytes()[:n_left])
    with pytest.raises(InputDataError, match=f"holds {n_left} bytes where its header announces {N_BYTES}"):
        read_image(plain)


@pytest.mark.fault("F04")
def test_a_wrong_gzip_length_is_refused(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-4] ^= 1  # the last four bytes are the length (RFC 1952)
    packed.write_bytes(content)
    with pytest.raises(InputDataError, match="length check"):
        read_image(packed)


@pytest.mark.fault("F06")
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputDataError, match="empty"):
        read_image(tmp_path / name)


@pytest.mark.fault("F08")
def test_a_name_that_lies_about_compression_is_refused_with_what_to_do(plain: Path, packed: Path) -> None:
    plain_content, packed_content = plain.read_bytes(), packed.read_bytes()
    plain.write_bytes(packed_content)
    packed.write_bytes(plain_content)
    with pytest.raises(InputDataError, match=r"compressed[\s\S]*rename it to end in \.nii\.gz"):
        read_image(plain)
    with pytest.raises(InputDataError, match=r"not compressed[\s\S]*rename it to end in \.nii$"):
        read_image(packed)


@pytest.mark.fault("F17")
def test_voxels_that_begin_behind_the_file_are_refused(plain: Path) -> None:
    patched(plain, VOX_OFFSET, 1e6, "<f4")
    with pytest.raises(InputDataError, match=str(1_000_000 + VOXELS_XYZ.nbytes)):
        read_image(plain)


def with_extension(path: Path, length: int, n_bytes: int = 32) -> Path:
    """Put an extension of `n_bytes` between header and voxels that says it has `length`."""
    content = path.read_bytes()
    extension = np.array([length, 6], "<i4").tobytes() + b"DOE^JANE".ljust(n_bytes - 8, b"\0")
    path.write_bytes(content[:HEADER_BYTES] + b"\1\0\0\0" + extension + content[VOXELS_PLACE:])
    return patched(path, VOX_OFFSET, VOXELS_PLACE + n_bytes, "<f4")


@pytest.mark.fault("F22")
@pytest.mark.parametrize("length", [-16, 0, 4, 48, 2**31 - 1])
def test_an_extension_of_impossible_length_is_refused(plain: Path, length: int) -> None:
    with pytest.raises(InputDataError, match=f"extension of {length} bytes where 32 are left"):
        read_image(with_extension(plain, length))


@pytest.mark.fault("F22")
def test_a_sound_extension_is_passed_over(plain: Path) -> None:
    assert np.array_equal(read_image(with_extension(plain, 32)).array[0], VOXELS_XYZ.T)


@pytest.mark.fault("F23")
def test_an_honest_header_makes_a_bomb_no_better(packed: Path) -> None:
    """2 GiB of zeros are announced; 2 MB of stream could hold them (DEFLATE reaches 1032-fold)."""
    patched(packed, DIM, [3, 1024, 1024, 1024, 1, 1, 1, 1], "<i2")
    packed.write_bytes(packed.read_bytes() + np.random.default_rng(0).bytes(2_100_000))
    tracemalloc.start()
    with pytest.raises(InputDataError, match="would become 2147484000"):
        read_image(packed)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.slow
@pytest.mark.fault("F23")
def test_a_bomb_of_two_gigabytes_costs_a_process_next_to_nothing(tmp_path: Path, packed: Path) -> None:
    patched(packed, DIM, [3, 1024, 1024, 1024, 1, 1, 1, 1], "<i2")
    head = gzip.decompress(packed.read_bytes())[:VOXELS_PLACE]
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as stream:
        stream.write(head)
        for _ in range(2 << 7):
            stream.write(bytes(1 << 23))
    # VmHWM, not `ru_maxrss`: a child begins with that of the process that started it.
    script = (
        "import re, sys; from pathlib import Path\n"
        "from medsegdiff_cli.imaging.reading import read_image\n"
        "from medsegdiff_cli.errors import InputDataError\n"
        "def peak(): return int(re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "read_image(Path(sys.argv[1]))\n"
        "before = peak()\n"
        "try: read_image(Path(sys.argv[2]))\n"
        "except InputDataError: print(peak() - before)\n"
    )
    small = write_nibabel(tmp_path / "small.nii.gz", VOXELS_XYZ, AFFINE)
    words = [sys.executable, "-c", script, str(small), str(tmp_path / "bomb.nii.gz")]
    more_kib = int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=600).stdout)
    assert more_kib < 200_000


@pytest.mark.fault("F24")
def test_a_sparse_file_is_refused_whether_its_header_lies_or_not(plain: Path) -> None:
    for shape, n_bytes in (((7, 6, 5), 1 << 40), ((8192, 8192, 8192), VOXELS_PLACE + 2 * 8192**3)):
        patched(plain, DIM, [3, *shape, 1, 1, 1, 1], "<i2")
        try:
            os.truncate(plain, n_bytes)
        except OSError:
            pytest.skip("this file system has no sparse files of a terabyte")
        tracemalloc.start()
        with pytest.raises(InputDataError, match=r"header announces|stored bytes would become"):
            read_image(plain)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 10_000_000
        os.truncate(plain, N_BYTES)


def outcome_of(path: Path) -> str:
    """Return "accepted" or "refused"; anything else that reading does is raised."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    try:
        image = read_image(path)
    except InputDataError:
        outcome = "refused"
    else:
        assert np.isfinite(image.array.min())
        assert np.isfinite(image.array.max())
        assert np.isfinite(image.geometry.affine_itk()).all()
        outcome = "accepted"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < LONGEST_S
    return outcome


def mutate(path: Path, n_mutations: int, seed: int, span: int) -> dict[str, int]:
    """Change one byte among the first `span` at a time, and count how reading ends."""
    whole = path.read_bytes()
    random = np.random.default_rng(seed)
    counts = {"accepted": 0, "refused": 0}
    for place, value in zip(random.integers(0, span, n_mutations), random.integers(1, 256, n_mutations), strict=True):
        content = bytearray(whole)
        content[place] ^= value
        path.write_bytes(content)
        counts[outcome_of(path)] += 1
    return counts


@pytest.mark.fault("F25")
@pytest.mark.parametrize("n_mutations", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_changed_byte_of_a_nifti_header_is_accepted_or_refused(plain: Path, n_mutations: int) -> None:
    counts = mutate(plain, n_mutations, seed=n_mutations, span=VOXELS_PLACE)
    # Texts, display ranges and the form that is not used may change; sizes, types and places may not.
    assert counts["accepted"] > n_mutations // 4
    assert counts["refused"] > n_mutations // 20


@pytest.mark.fault("F25")
@pytest.mark.parametrize("n_mutations", [100, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".png", ".tif"])
def test_a_changed_byte_of_any_other_header_is_accepted_or_refused(
    tmp_path: Path, ending: str, n_mutations: int
) -> None:
    path = tmp_path / f"case{ending}"
    voxels = VOXELS_XYZ.T.astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels if ending in (".mha", ".nrrd") else voxels[0]), str(path))
    assert sum(mutate(path, n_mutations, seed=7, span=min(300, path.stat().st_size)).values()) == n_mutations


# Headers that have misled readers, as changes of a sound one: (place, value, dtype) each, and what must come of it.
CORPUS: dict[str, tuple[str, list[tuple[int, object, str]]]] = {
    "sound": ("accepted", []),
    "texts full of bytes above ASCII": ("accepted", [(INTENT_NAME, b"\xff" * 16, "S16")]),
    "both codes 0": ("accepted", [(QFORM_CODE, [0, 0], "<i2")]),
    "code 255": ("accepted", [(QFORM_CODE, [255, 255], "<i2")]),
    "only the sform, pixdim NaN": ("accepted", [(QFORM_CODE, [0, 1], "<i2"), (PIXDIM + 4, [np.nan] * 3, "<f4")]),
    "only the qform, pixdim NaN": ("refused", [(QFORM_CODE, [1, 0], "<i2"), (PIXDIM + 4, [np.nan] * 3, "<f4")]),
    "two volumes": ("refused", [(DIM, [4, 7, 6, 2, 2], "<i2")]),
    "five axes of 1": ("accepted", [(DIM, [7, 7, 6, 5, 1, 1, 1, 1], "<i2")]),
    "more voxels than bytes": ("refused", [(DIM, [3, 7, 6, 6], "<i2")]),
    "fewer voxels than bytes": ("refused", [(DIM, [3, 7, 6, 4], "<i2")]),
    "a product that overflows 32 bits": ("refused", [(DIM, [3, 32767, 32767, 4], "<i2")]),
    "a product that overflows 64 bits": ("refused", [(DIM, [7] + [32767] * 7, "<i2")]),
    "float voxels over int16": ("refused", [(DATATYPE, [16, 32], "<i2")]),
    "uint16 over int16": ("accepted", [(DATATYPE, [512, 16], "<i2")]),
    "half a type": ("refused", [(DATATYPE, [16, 16], "<i2")]),
    "binary voxels": ("refused", [(DATATYPE, [1, 1], "<i2")]),
    "offset 0": ("accepted", [(VOX_OFFSET, 0, "<f4")]),
    "offset of half a byte": ("refused", [(VOX_OFFSET, 352.5, "<f4")]),
    "offset infinite": ("refused", [(VOX_OFFSET, np.inf, "<f4")]),
    "slope without end": ("refused", [(SLOPE, [np.inf, 0], "<f4")]),
    "slope 0": ("accepted", [(SLOPE, [0, 9], "<f4")]),
    "slope that overflows voxels": ("refused", [(SLOPE, [3e38, 0], "<f4")]),
    "an axis twice": ("refused", [(QFORM_CODE, [0, 1], "<i2"), (SROW_X, [[2, 2, 0, 0], [0, 0, 0, 0]], "<f4")]),
    "a denormal affine": ("refused", [(QFORM_CODE, [0, 1], "<i2"), (SROW_X, [1e-42, 0, 0, 0], "<f4")]),
    "an infinite place": ("refused", [(QFORM_CODE, [0, 1], "<i2"), (SROW_X + 12, np.inf, "<f4")]),
    "NIfTI-2's magic": ("refused", [(MAGIC, b"n+2\0", "S4")]),
    "size of NIfTI-2": ("refused", [(0, 540, "<i4")]),
    "the other byte order's size": ("refused", [(0, 348, ">i4")]),
    "no size": ("refused", [(0, 0, "<i4")]),
}


@pytest.mark.fault("F26")
@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_headers_that_misled_others_end_as_noted(tmp_path: Path, name: str, ending: str) -> None:
    expected, changes = CORPUS[name]
    path = write_nibabel(tmp_path / f"case{ending}", VOXELS_XYZ, AFFINE)
    for place, value, dtype in changes:
        patched(path, place, value, dtype)
    assert outcome_of(path) == expected


@pytest.mark.fault("F10")
def test_a_big_endian_file_equals_its_little_endian_twin(tmp_path: Path) -> None:
    for name, order in (("little", "<"), ("big", ">")):
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(VOXELS_XYZ, AFFINE, header), tmp_path / f"{name}.nii.gz")
    little, big = (read_image(tmp_path / f"{name}.nii.gz") for name in ("little", "big"))
    assert (tmp_path / "little.nii.gz").read_bytes() != (tmp_path / "big.nii.gz").read_bytes()
    assert np.array_equal(little.array, big.array)
    assert little.geometry == big.geometry
