"""Fingerprints of seeded phantoms."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.fingerprint import read_fingerprint
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.fingerprinting import extract
from medsegdiff_cli.fingerprinting.extract import extract_fingerprint
from medsegdiff_cli.fingerprinting.intensities import pooled_statistics, statistics_of
from medsegdiff_cli.fingerprinting.measure import count_boundary

SHAPE = (12, 16, 20)
SPACING = (2.5, 1.0, 0.5)


def _write(path: Path, array: np.ndarray, direction: tuple[float, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    if direction:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))


def _image(seed: int) -> np.ndarray:
    """An int16 volume that is zero outside of [1:11, 2:14, 3:20]."""
    array: np.ndarray = np.zeros(SHAPE, np.int16)
    array[1:11, 2:14, 3:20] = np.random.default_rng(seed).integers(1, 1000, (10, 12, 17))
    return array


def _label() -> np.ndarray:
    """A cuboid of 4 x 5 x 6 voxels with value 1, and one voxel of value 5."""
    array: np.ndarray = np.zeros(SHAPE, np.uint8)
    array[3:7, 4:9, 5:11] = 1
    array[9, 9, 9] = 5
    return array


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFolder:
    folder = tmp_path / "Dataset001_Phantom"
    for index in range(3):
        _write(folder / "imagesTr" / f"c{index}_0000.nii.gz", _image(index))
        _write(folder / "labelsTr" / f"c{index}.nii.gz", _label())
    _write(folder / "imagesUn" / "u0_0000.nii.gz", _image(10))
    # A test image that nothing may open.
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "t0_0000.nii.gz").write_bytes(b"no image at all")
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "spot": 5}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return open_dataset(folder)


def test_a_case_is_measured_as_it_was_made(dataset: DatasetFolder, tmp_path: Path) -> None:
    fingerprint = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    case = fingerprint.cases[0]
    assert [(c.part, c.case) for c in fingerprint.cases] == [("Tr", "c0"), ("Tr", "c1"), ("Tr", "c2"), ("Un", "u0")]
    assert (case.shape_voxels, case.spacing_mm, case.shape_after_crop_voxels) == (SHAPE, SPACING, (10, 12, 17))
    # ITK's identity is LPS: x grows to the left, y to posterior, z to superior; array order is z, y, x.
    assert case.orientation == "SPL"
    assert case.class_voxels == {"organ": 4 * 5 * 6, "spot": 1}
    # All voxels of the cuboid but its 2 x 3 x 4 core touch the outside.
    assert case.class_boundary_voxels == {"organ": 4 * 5 * 6 - 2 * 3 * 4, "spot": 1}
    assert fingerprint.cases[3].class_voxels == {}
    assert fingerprint.median_relative_size_after_cropping == 10 * 12 * 17 / (12 * 16 * 20)
    assert fingerprint == read_fingerprint(tmp_path / "cache" / "fingerprint.json")


def test_image_statistics_equal_numpys(dataset: DatasetFolder, tmp_path: Path) -> None:
    measured = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json").cases[1].intensity[0]
    voxels: np.ndarray = _image(1).astype(np.float64)
    low, median, high = np.percentile(voxels, (0.5, 50, 99.5))
    expected = (voxels.mean(), voxels.std(), voxels.min(), voxels.max(), low, median, high)
    extremes = (measured.mean, measured.std, measured.min, measured.max)
    found = (*extremes, measured.percentile_00_5, measured.median, measured.percentile_99_5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    as_floats = statistics_of(voxels)
    np.testing.assert_allclose(as_floats.percentile_99_5, measured.percentile_99_5, rtol=1e-12)


def test_foreground_statistics_are_those_of_the_labelled_voxels(dataset: DatasetFolder, tmp_path: Path) -> None:
    fingerprint = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    foreground = np.concatenate([_image(seed)[_label() > 0] for seed in range(3)])
    pooled = fingerprint.foreground_intensity[0]
    assert pooled.n_samples == 3 * 50_000
    # 150 000 draws from 363 voxels of deviation 290: standard error 0.7.
    assert abs(foreground.mean() - pooled.mean) < 3
    assert abs(np.median(foreground) - pooled.median) < 10
    everything = [_image(seed) for seed in (0, 1, 2, 10)]
    assert (0, max(image.max() for image in everything)) == (
        fingerprint.whole_intensity[0].min,
        fingerprint.whole_intensity[0].max,
    )
    inside = np.concatenate([_image(seed)[_image(seed) != 0] for seed in range(3)])
    assert abs(inside.mean() - fingerprint.mask_intensity[0].mean) < 3


def test_masks_define_the_mask_statistics(dataset: DatasetFolder, tmp_path: Path) -> None:
    mask: np.ndarray = np.zeros(SHAPE, np.uint8)
    mask[:2] = 1
    for index in range(3):
        _write(dataset.path / "masksTr" / f"c{index}.nii.gz", mask)
    pooled = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json").mask_intensity[0]
    inside = np.concatenate([_image(seed)[:2].ravel() for seed in range(3)])
    assert abs(inside.mean() - pooled.mean) < 3
    assert pooled.min == 0


def test_only_changed_cases_are_read_again(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    read: list[str] = []
    measure = extract.measure_case

    def counting(files, *rest):  # type: ignore[no-untyped-def]
        read.append(files.case)
        return measure(files, *rest)

    monkeypatch.setattr(extract, "measure_case", counting)
    assert first == extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    assert read == []
    _write(dataset.path / "imagesTr" / "c1_0000.nii.gz", _image(99))
    changed = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    assert read == ["c1"]
    assert first.cases[0] == changed.cases[0]
    assert first.cases[1] != changed.cases[1]
    assert changed == extract_fingerprint(dataset, tmp_path / "another_cache" / "fingerprint.json")


def test_a_damaged_record_is_measured_again(dataset: DatasetFolder, tmp_path: Path) -> None:
    first = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    record = next((tmp_path / "cache").rglob("c1.npz"))
    record.write_bytes(record.read_bytes()[:100])
    assert first == extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")


def test_records_of_removed_cases_go_away(dataset: DatasetFolder, tmp_path: Path) -> None:
    extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    (dataset.path / "imagesUn" / "u0_0000.nii.gz").unlink()
    extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    assert {"c0.npz", "c1.npz", "c2.npz"} == {path.name for path in (tmp_path / "cache").rglob("*.npz")}


def test_two_workers_measure_the_same_as_none(dataset: DatasetFolder, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    alone = extract_fingerprint(dataset, tmp_path / "alone" / "fingerprint.json")
    file = tmp_path / "together" / "fingerprint.json"
    together = extract_fingerprint(dataset, file, workers=2, progress=lambda *counts: seen.append(counts))
    assert alone == together
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_every_bad_case_is_listed_at_once(dataset: DatasetFolder, tmp_path: Path) -> None:
    (dataset.path / "imagesTr" / "c0_0000.nii.gz").write_bytes(b"not an image")
    unknown = _label()
    unknown[0, 0, 0] = 7
    _write(dataset.path / "labelsTr" / "c1.nii.gz", unknown)
    (dataset.path / "labelsTr" / "c2.nii.gz").unlink()
    with pytest.raises(InputDataError) as caught:
        extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    text = str(caught.value)
    assert "3 of 4 cases cannot be used" in text
    for part in ("imagesTr/c0", "imagesTr/c1", "label values [7]", "imagesTr/c2", "without a label", "msd check"):
        assert part in text
    assert not (tmp_path / "cache" / "fingerprint.json").exists()


def test_a_label_of_another_shape_is_refused(dataset: DatasetFolder, tmp_path: Path) -> None:
    _write(dataset.path / "labelsTr" / "c1.nii.gz", _label()[:-1])
    with pytest.raises(InputDataError, match=r"shape \(11, 16, 20\)"):
        extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")


def test_unlabelled_images_alone_are_a_dataset(dataset: DatasetFolder, tmp_path: Path) -> None:
    for path in [*dataset.path.glob("imagesTr/*"), *dataset.path.glob("labelsTr/*")]:
        path.unlink()
    fingerprint = extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")
    assert (fingerprint.foreground_intensity, fingerprint.mask_intensity) == ((), ())
    assert [case.case for case in fingerprint.training_cases()] == ["u0"]


def test_an_empty_dataset_names_the_file_ending(dataset: DatasetFolder, tmp_path: Path) -> None:
    for path in dataset.path.glob("images*/*"):
        path.unlink()
    with pytest.raises(InputDataError, match=r"CASE_0000\.nii\.gz"):
        extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json")


def test_orientation_follows_the_directions(dataset: DatasetFolder, tmp_path: Path) -> None:
    # x to the right (RAS-like in x and y), z unchanged.
    _write(dataset.path / "imagesUn" / "u0_0000.nii.gz", _image(3), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert extract_fingerprint(dataset, tmp_path / "cache" / "fingerprint.json").cases[3].orientation == "SAR"


def test_cases_weigh_the_same_however_large_they_are() -> None:
    small: np.ndarray = np.zeros((1, 10), np.float32)
    large: np.ndarray = np.ones((1, 10), np.float32)
    pooled = pooled_statistics([small, large, np.zeros((1, 0), np.float32)])
    assert (pooled[0].mean, pooled[0].n_samples) == (0.5, 20)
    assert pooled_statistics([]) == ()


def test_boundaries_of_nothing_and_of_the_whole_image() -> None:
    assert count_boundary(np.zeros((4, 4), bool)) == 0
    # The image's edge counts as boundary: 16 voxels without the 2 x 2 core.
    assert count_boundary(np.ones((4, 4), bool)) == 16 - 4
