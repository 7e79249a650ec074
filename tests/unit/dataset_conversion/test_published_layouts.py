"""Published photographs and radiographs in their own layouts: lungs are joined, the right files are found."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.dataset_conversion import dermis, montgomery
from medsegdiff_cli.dataset_conversion.contract import Options
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.workflows.convert import convert_dataset


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3)
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def mask(*columns: int, shape: tuple[int, int] = (12, 10)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[3:9, list(columns)] = 255
    return array


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (12, 10, 3)).astype(np.uint8)


def test_both_lungs_become_one_class_also_where_the_masks_overlap(tmp_path: Path) -> None:
    source = tmp_path / "MontgomerySet"
    write(source / "CXR_png" / "MCUCXR_0001_0.png", photo(0)[..., 0])
    write(source / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png", mask(1, 2, 3))
    write(source / "ManualMask" / "rightMask" / "MCUCXR_0001_0.png", mask(3, 7))
    montgomery.convert(source, tmp_path / "Dataset036_M", Options())
    label = read(tmp_path / "Dataset036_M" / "labelsTr" / "MCUCXR_0001_0.png")
    assert np.array_equal(label, (mask(1, 2, 3, 7) > 0).astype(np.uint8))


def test_one_lung_without_the_other_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "MontgomerySet"
    write(source / "CXR_png" / "a.png", photo(0)[..., 0])
    write(source / "ManualMask" / "rightMask" / "a.png", mask(3))
    with pytest.raises(InputDataError, match="only one lung has a mask"):
        montgomery.convert(source, tmp_path / "Dataset036_M", Options())
    with pytest.raises(InputDataError, match="no radiographs"):
        montgomery.convert(tmp_path / "elsewhere", tmp_path / "Dataset036_M", Options())


def test_dermis_takes_the_photographs_of_dermis_alone_and_tells_equal_names_apart(tmp_path: Path) -> None:
    source = tmp_path / "Skin Image Data Set"
    for number, place in enumerate(("Set-1/skin_data/melanoma/dermis", "Set-2/skin_data/notmelanoma/dermIS")):
        write(source / place / "SSM1_orig.jpg", photo(number))
        write(source / place / "SSM1_contour.png", mask(number))
    write(source / "Set-1/skin_data/melanoma/dermquest/NM1_orig.jpg", photo(2))
    report = convert_dataset("dermis", source, tmp_path / "Dataset033_D", Options())
    labels = {path.stem: read(path) for path in (tmp_path / "Dataset033_D" / "labelsTr").iterdir()}
    assert set(labels) == {"melanoma_SSM1", "notmelanoma_SSM1"}
    assert np.array_equal(labels["notmelanoma_SSM1"], (mask(1) > 0).astype(np.uint8))
    assert (report.n_training, report.n_unlabelled, dict(report.labels)) == (2, 0, {"background": 0, "lesion": 1})
    (source / "Set-1/skin_data/melanoma/dermis/SSM1_orig.jpg").unlink()
    with pytest.raises(InputDataError, match="a mask has no photograph"):
        dermis.convert(source, tmp_path / "Dataset034_D", Options())


ISIC = Options(
    images="ISIC2018_Task1-2_Training_Input/*.jpg",
    labels="ISIC2018_Task1_Training_GroundTruth/*.png",
    label_suffix="_segmentation",
    label_map={255: "lesion"},
    threshold=127,
)
PH2 = Options(
    images="PH2 Dataset images/*/*_Dermoscopic_Image/*.bmp",
    labels="PH2 Dataset images/*/*_lesion/*_lesion.bmp",
    label_suffix="_lesion",
    label_map={1: "lesion"},
    threshold=0,
)


def test_isic_and_ph2_are_folders_as_their_recipes_convert_them(tmp_path: Path) -> None:
    isic, ph2 = tmp_path / "isic", tmp_path / "PH2Dataset"
    for name in ("ISIC_0000000", "ISIC_0000001"):
        write(isic / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg", photo(0))
        write(isic / "ISIC2018_Task1-2_Training_Input" / f"{name}_superpixels.png", photo(0))
        write(isic / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png", mask(4))
    for name, value in (("IMD002", 255), ("IMD003", 1)):
        case = ph2 / "PH2 Dataset images" / name
        write(case / f"{name}_Dermoscopic_Image" / f"{name}.bmp", photo(1))
        write(case / f"{name}_lesion" / f"{name}_lesion.bmp", mask(4) // 255 * np.uint8(value))
        write(case / f"{name}_roi" / f"{name}_R1_Label3.bmp", mask(1))
    for number, (source, options) in enumerate(((isic, ISIC), (ph2, PH2)), 31):
        folder = tmp_path / f"Dataset{number:03d}_X"
        report = convert_dataset("folder", source, folder, options)
        assert (report.n_training, report.n_test, report.n_unlabelled) == (2, 0, 0)
        for path in (folder / "labelsTr").iterdir():
            assert np.array_equal(read(path), (mask(4) > 0).astype(np.uint8))
