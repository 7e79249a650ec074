"""Every image format keeps what is written, refuses what is cut off, and reports its grid from the header."""

from pathlib import Path

import numpy as np
import pytest

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import IMAGE_ENDINGS, case_name_of, ending_of, read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import LOSSLESS_ENDINGS, write_image, write_label

FLAT_ENDINGS = (".png", ".bmp")
VOLUME_ENDINGS = tuple(ending for ending in LOSSLESS_ENDINGS if ending not in FLAT_ENDINGS)
ORIENTED_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
DTYPES = {".png": ("u1", "u2"), ".bmp": ("u1",), ".tif": ("u1", "i2", "f4"), ".tiff": ("u1", "i2", "f4")}
OBLIQUE = Geometry(
    shape=(5, 6, 7),
    spacing_mm=(2.5, 0.75, 0.5),
    origin_mm=(-12.5, 30.0, 7.25),
    # Rotation by the angle of the 3-4-5 triangle about z, then the first two axes swapped.
    direction=(-0.8, 0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0),
)


def noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = np.random.default_rng(7).integers(0, 120, shape)
    return values.astype(dtype)


@pytest.mark.parametrize("ending", LOSSLESS_ENDINGS)
def test_a_2d_image_comes_back_equal_in_every_dtype(tmp_path: Path, ending: str) -> None:
    for dtype in DTYPES.get(ending, ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "u8", "i8")):
        image = Image(array=noise((1, 9, 11), dtype), geometry=Geometry.plain((9, 11)))
        path = tmp_path / f"case_{dtype}{ending}"
        write_image(path, image)
        back = read_image(path)
        assert back.array.dtype == image.array.dtype
        assert np.array_equal(back.array, image.array)
        assert back.geometry.shape == (9, 11)


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_a_volume_comes_back_equal(tmp_path: Path, ending: str) -> None:
    image = Image(array=noise((1, 5, 6, 7), "int16"), geometry=Geometry.plain((5, 6, 7)))
    write_image(tmp_path / f"case{ending}", image)
    assert np.array_equal(read_image(tmp_path / f"case{ending}").array, image.array)


@pytest.mark.parametrize("source", ORIENTED_ENDINGS)
@pytest.mark.parametrize("target", ORIENTED_ENDINGS)
def test_an_oblique_grid_survives_a_change_of_format(tmp_path: Path, source: str, target: str) -> None:
    first = Image(array=noise((1, 5, 6, 7), "uint8"), geometry=OBLIQUE)
    write_image(tmp_path / f"first{source}", first)
    second = read_image(tmp_path / f"first{source}")
    write_image(tmp_path / f"second{target}", second)
    third = read_image(tmp_path / f"second{target}")
    assert np.array_equal(third.array, first.array)
    # NIfTI-1 stores float32: 30 mm are exact to 2e-6.
    assert largest_corner_distance_mm(third.geometry, OBLIQUE) < 1e-5


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".nrrd", ".mha"])
def test_rgb_comes_back_as_three_channels(tmp_path: Path, ending: str) -> None:
    image = Image(array=noise((3, 8, 9), "uint8"), geometry=Geometry.plain((8, 9)))
    write_image(tmp_path / f"case{ending}", image)
    assert np.array_equal(read_image(tmp_path / f"case{ending}").array, image.array)


@pytest.mark.parametrize("ending", LOSSLESS_ENDINGS)
def test_a_label_comes_back_as_uint8(tmp_path: Path, ending: str) -> None:
    label = (noise((9, 11), "int64") > 60).astype(np.int64)
    write_label(tmp_path / f"case{ending}", label, Geometry.plain((9, 11)))
    back = read_label(tmp_path / f"case{ending}").array
    assert back.dtype == np.uint8
    assert np.array_equal(back[0], label)


@pytest.mark.parametrize("ending", LOSSLESS_ENDINGS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, ending: str) -> None:
    image = Image(array=noise((1, 9, 11), "uint8"), geometry=Geometry.plain((9, 11)))
    write_image(tmp_path / "a" / f"case{ending}", image)
    write_image(tmp_path / "b" / f"case{ending}", image)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("ending", LOSSLESS_ENDINGS)
def test_the_grid_is_read_from_the_header_as_from_the_whole_file(tmp_path: Path, ending: str) -> None:
    geometry = Geometry.plain((9, 11), spacing_mm=(0.5, 0.25))
    write_image(tmp_path / f"case{ending}", Image(array=noise((1, 9, 11), "uint8"), geometry=geometry))
    assert read_geometry(tmp_path / f"case{ending}") == read_image(tmp_path / f"case{ending}").geometry


@pytest.mark.fault("F01", "F02")
@pytest.mark.parametrize("ending", LOSSLESS_ENDINGS)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("level", [0, 1])
def test_a_truncated_file_is_refused_silently_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ending: str, fraction: float, level: int
) -> None:
    path = tmp_path / f"case{ending}"
    image = Image(array=noise((1, 40, 50), "uint8"), geometry=Geometry.plain((40, 50)))
    write_image(path, image, compression_level=level)
    voxels = next((file for file in tmp_path.iterdir() if file.suffix in (".raw", ".zraw")), path)
    content = voxels.read_bytes()
    voxels.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputDataError) as refusal:
        read_image(path)
    assert str(path) in str(refusal.value.where)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", [".tif", ".tiff"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_stack_of_pages_is_refused(tmp_path: Path, ending: str, fraction: float) -> None:
    path = tmp_path / f"case{ending}"
    write_image(path, Image(array=noise((1, 5, 40, 50), "uint8"), geometry=Geometry.plain((5, 40, 50))))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputDataError, match="TIFF"):
        read_image(path)


@pytest.mark.fault("F08")
@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_a_file_of_other_content_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"case{ending}"
    path.write_bytes(b"<html>404</html>" * 100)
    for read in (read_image, read_label, read_geometry):
        with pytest.raises(InputDataError, match=r"case\."):
            read(path)


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_the_ending_is_found_in_any_case_and_leaves_the_case_name(ending: str) -> None:
    assert ending_of(Path(f"folder.d/IM-0001.dcm{ending.upper()}")) == ending
    assert case_name_of(Path(f"folder.d/IM-0001.dcm{ending}")) == "IM-0001.dcm"


@pytest.mark.parametrize("name", ["a.gz", "a.txt", "nii", ".nii.gz", "a.npy", "a"])
def test_other_files_have_no_image_ending(name: str) -> None:
    assert ending_of(Path(name)) == ""
    assert case_name_of(Path(name)) == name


@pytest.mark.parametrize("name", ["case.jpg", "case.jpeg", "case.txt"])
def test_lossy_and_unknown_formats_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="case"):
        write_label(tmp_path / name, np.zeros((4, 4), np.uint8), Geometry.plain((4, 4)))
    assert list(tmp_path.iterdir()) == []
