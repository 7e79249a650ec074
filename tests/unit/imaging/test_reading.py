"""Photographs, labels and DICOM folders: colours, alpha, palettes, resolutions, damage. Pillow builds the photos."""

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.dicom import list_dicom_series, read_dicom_series
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import collapse_grey, read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import write_image

RNG = np.random.default_rng(11)
GREY = RNG.integers(0, 256, (13, 17)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (13, 17, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = PIL.Image.fromarray(array) if mode is None else PIL.Image.fromarray(array).convert(mode)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_grey_has_one_channel_and_colour_three(tmp_path: Path, ending: str) -> None:
    assert np.array_equal(read_image(save(tmp_path / f"g{ending}", GREY)).array, GREY[np.newaxis])
    assert np.array_equal(read_image(save(tmp_path / f"c{ending}", COLOUR)).array, COLOUR.transpose(2, 0, 1))


def test_grey_saved_as_colour_stays_three_channels_and_collapses_on_demand(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "case.png", np.dstack([GREY] * 3)))
    assert image.array.shape == (3, 13, 17)
    assert np.array_equal(collapse_grey(image).array, GREY[np.newaxis])
    assert np.array_equal(read_label(tmp_path / "case.png").array, GREY[np.newaxis])


def test_colours_are_not_collapsed_and_are_no_label(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "case.png", COLOUR))
    assert collapse_grey(image) is image
    with pytest.raises(InputDataError, match="one channel, this file has 3"):
        read_label(tmp_path / "case.png")


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_one_bit_masks_are_0_and_255_in_uint8(tmp_path: Path, ending: str) -> None:
    label = read_label(save(tmp_path / f"mask{ending}", GREY > 99)).array
    assert label.dtype == np.uint8
    assert np.array_equal(label[0], np.where(GREY > 99, 255, 0))


def test_16_bit_grey_keeps_all_its_values(tmp_path: Path) -> None:
    array = GREY.astype(np.uint16) * 257
    assert np.array_equal(read_image(save(tmp_path / "case.png", array)).array, array[np.newaxis])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_an_opaque_alpha_is_dropped_and_a_transparent_one_refused(tmp_path: Path, ending: str) -> None:
    opaque = np.dstack([COLOUR, np.full((13, 17), 255, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / f"a{ending}", opaque)).array, COLOUR.transpose(2, 0, 1))
    opaque[3, 4, 3] = 254
    with pytest.raises(InputDataError, match="down to 254 of 255"):
        read_image(save(tmp_path / f"b{ending}", opaque))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_palette_indices_of_a_png_are_the_label(tmp_path: Path, bits: int) -> None:
    indices = GREY & (2**bits - 1)
    image = PIL.Image.frombytes("P", (17, 13), indices.tobytes())
    image.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(tmp_path / "label.png", bits=bits)
    assert np.array_equal(read_label(tmp_path / "label.png").array, indices[np.newaxis])
    assert read_image(tmp_path / "label.png").array.shape[0] == 3


@pytest.mark.parametrize("name", ["case.png", "case.jpg", "case.bmp"])
def test_a_photograph_has_no_physical_spacing(tmp_path: Path, name: str) -> None:
    geometry = read_geometry(save(tmp_path / name, GREY, dpi=(254, 254)))
    assert geometry == Geometry.plain((13, 17), has_physical_spacing=False)
    assert read_image(tmp_path / name).geometry == geometry


@pytest.mark.parametrize(
    ("options", "spacing_mm"),
    [
        ({}, None),
        ({"dpi": (72, 72)}, None),
        ({"dpi": (508, 508)}, 0.05),  # 25.4 mm / 508
        ({"resolution_unit": 3, "resolution": 40.0}, 0.25),  # 10 mm / 40
    ],
)
def test_a_tiff_has_physical_spacing_when_its_resolution_is_no_printing_default(
    tmp_path: Path, options: dict[str, object], spacing_mm: float | None
) -> None:
    geometry = read_geometry(save(tmp_path / "case.tif", GREY, **options))
    assert geometry.has_physical_spacing == (spacing_mm is not None)
    assert geometry.spacing_mm == pytest.approx((spacing_mm or 1.0,) * 2)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff_is_read_and_refused_when_cut(tmp_path: Path, compression: str) -> None:
    path = save(tmp_path / "case.tif", GREY, compression=compression)
    assert np.array_equal(read_image(path).array[0], GREY)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputDataError):
        read_image(path)


def test_tiff_pages_of_different_size_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "case.tif", GREY, save_all=True, append_images=[PIL.Image.fromarray(GREY[:5])])
    with pytest.raises(InputDataError, match="pages of different size"):
        read_image(tmp_path / "case.tif")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], progressive: bool, fraction: float
) -> None:
    path = save(tmp_path / "case.jpg", np.kron(COLOUR, np.ones((9, 9, 1), np.uint8)), progressive=progressive)
    assert read_image(path).array.shape == (3, 117, 153)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputDataError, match="JPEG"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_an_absurd_jpeg_size_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "case.jpg", GREY)
    size = struct.pack(">HH", 13, 17)
    path.write_bytes(path.read_bytes().replace(size, struct.pack(">HH", 65000, 65000), 1))
    with pytest.raises(InputDataError, match="absurd JPEG size 65000 x 65000"):
        read_image(path)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND"])
def test_a_png_chunk_with_a_wrong_checksum_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = save(tmp_path / "case.png", GREY)
    content = bytearray(path.read_bytes())
    place = content.index(kind) - 4
    length = int.from_bytes(content[place : place + 4], "big")
    content[place + 8 + length] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputDataError, match=f"checksum in PNG chunk b'{kind.decode()}'"):
        read_image(path)


def test_an_absurd_png_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "case.png", GREY)
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    content = path.read_bytes()
    path.write_bytes(content[:16] + head + zlib.crc32(b"IHDR" + head).to_bytes(4, "big") + content[33:])
    with pytest.raises(InputDataError, match="announces 10000100000 bytes"):  # 100000 rows of 100000 + 1 bytes
        read_image(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("level", [0, 1])
def test_an_absurd_size_in_a_text_header_is_refused(tmp_path: Path, ending: str, level: int) -> None:
    path = tmp_path / f"case{ending}"
    write_image(path, Image(array=GREY[np.newaxis], geometry=Geometry.plain(GREY.shape)), compression_level=level)
    path.write_bytes(path.read_bytes().replace(b"17 13", b"17000000 13000000"))
    with pytest.raises(InputDataError, match=str(17000000 * 13000000)):
        read_image(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_nan_is_refused_in_every_float_format(tmp_path: Path, ending: str) -> None:
    array = np.array([[[0.0, np.nan], [np.inf, 1.0]]], np.float32)
    write_image(tmp_path / f"case{ending}", Image(array=array, geometry=Geometry.plain((2, 2))))
    with pytest.raises(InputDataError, match="2 voxels are NaN or infinite"):
        read_image(tmp_path / f"case{ending}")


def test_voxels_outside_the_folder_of_an_mhd_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "case.mhd"
    write_image(path, Image(array=GREY[np.newaxis], geometry=Geometry.plain(GREY.shape)))
    path.write_text(path.read_text().replace("case.zraw", "../case.zraw"))
    with pytest.raises(InputDataError, match=r"voxels in '\.\./case\.zraw'"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_label, read_geometry])
def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path: Path, read: object) -> None:
    with pytest.raises(InputDataError, match="not found"):
        read(tmp_path / "none.png")  # type: ignore[operator]
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputDataError, match=r"supported: \.nii\.gz"):
        read(tmp_path / "notes.txt")  # type: ignore[operator]


def write_series(
    folder: Path, *, places_mm: list[float], uid: str = "1.2.3", prefix: str = "a", tilt: float = 0
) -> None:
    """Write one CT slice per place, filled with its index, in file names of shuffled order."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, place in enumerate(places_mm):
        slice_ = sitk.GetImageFromArray(np.full((1, 5, 7), index, np.int16))
        slice_.SetSpacing((0.5, 0.75, 1.0))
        slice_.SetOrigin((1.0 + tilt * index, 2.0, place))
        tags = {"0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000e": uid, "0020|000d": "1.9"}
        tags |= {"0008|0018": f"{uid}.{prefix == 'a':d}.{index}", "0020|0037": r"1\0\0\0\1\0", "0018|0050": "1"}
        tags |= {"0020|0032": rf"{1.0 + tilt * index}\2\{place}", "0020|0013": str(99 - index)}
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{prefix}{index * 5 % len(places_mm):03}.dcm"))
        writer.Execute(slice_)


EVEN = [3.0, 5.5, 8.0, 10.5, 13.0, 15.5]


def test_a_dicom_folder_becomes_a_volume_sorted_by_position(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places_mm=EVEN)
    image = read_image(tmp_path / "ct")
    assert image.array[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert image.geometry.spacing_mm == (2.5, 0.75, 0.5)
    assert image.geometry.origin_mm == (1.0, 2.0, 3.0)
    assert read_geometry(tmp_path / "ct") == image.geometry


@pytest.mark.parametrize(
    ("places_mm", "tilt", "message"),
    [
        ([3.0, 5.5, 10.5, 13.0], 0.0, "5 mm behind .*slice missing"),
        ([3.0, 5.5, 8.1, 10.5], 0.0, "uneven slices"),
        ([3.0, 5.5, 5.5, 8.0], 0.0, "same place"),
        (EVEN, 0.5, r"drift by 2\.5 mm"),  # 5 steps of 0.5 mm
    ],
)
def test_an_incomplete_or_crooked_series_is_refused(
    tmp_path: Path, places_mm: list[float], tilt: float, message: str
) -> None:
    write_series(tmp_path / "ct", places_mm=places_mm, tilt=tilt)
    for read in (read_image, read_geometry):
        with pytest.raises(InputDataError, match=message):
            read(tmp_path / "ct")


def test_several_series_are_listed_with_their_counts_and_read_by_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places_mm=EVEN)
    write_series(tmp_path / "ct", places_mm=EVEN[:4], uid="1.2.4", prefix="b")
    with pytest.raises(InputDataError, match=r"2 DICOM series: 1\.2\.3 \(6 files\), 1\.2\.4 \(4 files\)"):
        read_image(tmp_path / "ct")
    assert [len(series.files) for series in list_dicom_series(tmp_path / "ct")] == [6, 4]
    assert read_dicom_series(tmp_path / "ct", "1.2.4").geometry.shape == (4, 5, 7)


def test_a_truncated_last_slice_is_refused_and_not_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places_mm=EVEN)
    last = tmp_path / "ct" / "a001.dcm"  # index 5: 5 * 5 % 6 = 1
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(InputDataError, match=r"cannot be read[\s\S]*a001\.dcm"):
        read_image(tmp_path / "ct")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no DICOM series"):
        read_image(tmp_path)
