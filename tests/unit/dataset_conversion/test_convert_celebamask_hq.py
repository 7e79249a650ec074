"""CelebAMask-HQ: a mask a class becomes one label map, and portraits come down to the masks' grid."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.dataset_conversion.contract import Options
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.workflows.convert import convert_dataset

# The release's own order of painting, as its page lists it: a class's place is its value.
ORDER = "skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r neck_l neck cloth"


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def portrait(source: Path, number: int, shape: tuple[int, int] = (16, 12), ending: str = ".png") -> np.ndarray:
    array = np.random.default_rng(number).integers(0, 256, (*shape, 3)).astype(np.uint8)
    write(source / "CelebA-HQ-img" / f"{number}{ending}", array)
    return array


def mask(source: Path, number: int, name: str, rows: slice, shape: tuple[int, int] = (8, 6)) -> None:
    array = np.zeros((*shape, 3), np.uint8)
    array[rows] = 255
    write(source / "CelebAMask-HQ-mask-anno" / str(number // 2000) / f"{number:05d}_{name}.png", array)


def convert(tmp_path: Path, **options: object) -> tuple[Path, dict[str, object]]:
    folder = tmp_path / "Dataset037_CelebAMask"
    convert_dataset("celebamask-hq", tmp_path / "source", folder, Options.model_validate(options))
    return folder, json.loads((folder / "dataset.json").read_text())


def test_every_class_has_its_published_value_and_later_ones_lie_on_top(tmp_path: Path) -> None:
    portrait(tmp_path / "source", 0, (36, 12))
    for place, name in enumerate(ORDER.split()):
        mask(tmp_path / "source", 0, name, slice(place, 18), (18, 6))
    folder, info = convert(tmp_path)
    assert read(folder / "labelsTr" / "00000.png")[:, 0].tolist() == list(range(1, 19))
    assert info["labels"] == {"background": 0, **{name: n for n, name in enumerate(ORDER.split(), start=1)}}


def test_skin_lies_lowest_whatever_the_order_of_the_file_names(tmp_path: Path) -> None:
    # In the alphabet, cloth and hair come before skin, and u_lip after it.
    source = tmp_path / "source"
    portrait(source, 2001)
    mask(source, 2001, "skin", slice(0, 8))
    mask(source, 2001, "hair", slice(0, 4))
    mask(source, 2001, "cloth", slice(3, 5))
    mask(source, 2001, "u_lip", slice(3, 6))
    folder, _ = convert(tmp_path)
    assert read(folder / "labelsTr" / "02001.png")[:, 0].tolist() == [13, 13, 13, 18, 18, 11, 1, 1]


def test_an_absent_class_is_nowhere_and_a_portrait_without_masks_is_unlabelled(tmp_path: Path) -> None:
    source = tmp_path / "source"
    portrait(source, 0)
    portrait(source, 1)
    mask(source, 0, "skin", slice(2, 6))
    folder, info = convert(tmp_path)
    assert set(np.unique(read(folder / "labelsTr" / "00000.png")).tolist()) == {0, 1}
    assert [path.name for path in (folder / "imagesUn").iterdir()] == ["00001_0000.png"]
    assert info["numTraining"] == 1


def test_a_pixel_is_the_mean_of_the_four_below_it(tmp_path: Path) -> None:
    fine = portrait(tmp_path / "source", 0)
    mask(tmp_path / "source", 0, "skin", slice(0, 8))
    folder, _ = convert(tmp_path)
    expected = np.zeros((8, 6, 3))
    for y, x, channel in np.ndindex(expected.shape):
        four = [int(fine[2 * y + i, 2 * x + j, channel]) for i in (0, 1) for j in (0, 1)]
        expected[y, x, channel] = int(sum(four) / 4 + 0.5)
    assert np.array_equal(read(folder / "imagesTr" / "00000_0000.png"), expected)


def test_portraits_may_be_jpg_and_already_of_the_masks_size(tmp_path: Path) -> None:
    portrait(tmp_path / "source", 0, (8, 6), ".jpg")
    mask(tmp_path / "source", 0, "skin", slice(0, 8))
    folder, _ = convert(tmp_path)
    jpg = read(tmp_path / "source" / "CelebA-HQ-img" / "0.jpg")
    assert np.array_equal(read(folder / "imagesTr" / "00000_0000.png"), jpg)


def test_the_official_test_portraits_can_be_listed(tmp_path: Path) -> None:
    for number in range(3):
        portrait(tmp_path / "source", number)
        mask(tmp_path / "source", number, "skin", slice(0, 8))
    (tmp_path / "test.txt").write_text("00001\n")
    folder, _ = convert(tmp_path, test_list=tmp_path / "test.txt")
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["00001_0000.png"]
    assert not (folder / "splits_final.json").exists()


@pytest.mark.parametrize(
    ("number", "name", "place", "message"),
    [
        (7, "skin", "0", "a mask has no portrait"),
        (0, "beard", "0", "'beard' is no class"),
        (0, "hair", "1", "wrong folder"),
    ],
)
def test_a_mask_that_belongs_nowhere_is_an_error(
    tmp_path: Path, number: int, name: str, place: str, message: str
) -> None:
    source = tmp_path / "source"
    portrait(source, 0)
    mask(source, 0, "skin", slice(0, 8))
    write(source / "CelebAMask-HQ-mask-anno" / place / f"{number:05d}_{name}.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(InputDataError, match=message):
        convert(tmp_path)
    assert not (tmp_path / "Dataset037_CelebAMask").exists()


@pytest.mark.parametrize("shape", [(15, 12), (24, 12), (4, 3)])
def test_a_portrait_that_is_no_whole_multiple_of_its_mask_is_an_error(tmp_path: Path, shape: tuple[int, int]) -> None:
    portrait(tmp_path / "source", 0, shape)
    mask(tmp_path / "source", 0, "skin", slice(0, 8))
    with pytest.raises(InputDataError, match="no whole multiple"):
        convert(tmp_path)


def test_a_mask_of_another_size_than_the_first_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in (0, 1):
        portrait(source, number)
        mask(source, number, "skin", slice(0, 8))
    mask(source, 1, "hair", slice(0, 4), (16, 12))
    with pytest.raises(InputDataError, match="does not fit the image's") as error:
        convert(tmp_path)
    assert "00001_hair.png" in str(error.value.where)
