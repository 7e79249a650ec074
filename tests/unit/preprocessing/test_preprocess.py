"""Filling the preprocessed store."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from small_store import AFFINE, plan_of, save, settle

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint, Fingerprint
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.errors import InputDataError, PartialFailure, ResourceError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.transform import Placement
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.preprocessing.store import forecast_store_bytes, preprocess
from medsegdiff_cli.preprocessing.transform_settings import transform_settings


def test_an_entry_holds_image_label_and_how_to_go_back(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    report = preprocess(dataset, plan_of(), "3d", store)
    assert report.written == ("a", "b", "c", "u")
    case = store.read("a")
    native = nibabel.load(dataset.cases("Tr")[0].images[0]).get_fdata().T
    assert case.image.dtype == np.float16
    assert case.image.shape == (1, 6, 10, 8)
    assert np.allclose(case.image[0], (native - native.mean()) / native.std(), atol=2e-3)
    assert case.label is not None
    assert np.unique(case.label).tolist() == [0, 1, 2]
    assert case.properties["class_voxels"] == {"a": 2 * 4 * 3, "b": 9}
    assert case.properties["foreground_slices"] == [1, 2, 4]
    assert (case.properties["part"], case.properties["group"], case.properties["domain"]) == (
        "Tr",
        "patient 1",
        "scanner 1",
    )
    assert case.properties["grid_spacing_mm"] == [2, 1, 1]
    assert Placement.from_json(case.properties["placement"]).geometry.shape == (6, 10, 8)
    # Between 2 and 4 float16 numbers are 2^-9 apart, so rounding moves them by 2^-10 at most.
    assert 2 < np.abs(case.image).max() < 4
    assert case.properties["rounding_error_bound"] == 2**-10
    unlabelled = store.read("u")
    assert unlabelled.label is None
    assert unlabelled.properties["class_voxels"] is None
    assert store.read("a", with_label=False).label is None


def test_a_second_run_reuses_everything_without_reading_images(
    dataset: DatasetFolder, store: PreprocessedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    monkeypatch.setattr("medsegdiff_cli.preprocessing.store.preprocess_case", lambda job: pytest.fail(job.case))
    report = preprocess(dataset, plan_of(), "3d", store)
    assert (report.written, report.reused) == ((), ("a", "b", "c", "u"))


def test_a_changed_file_changes_its_case_only(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    save(dataset.path / "labelsTr" / "b.nii.gz", np.full((6, 10, 8), 200, np.uint8))
    report = preprocess(dataset, plan_of(), "3d", store)
    assert report.written == ("b",)
    assert store.read("b").properties["class_voxels"] == {"a": 0, "b": 480}


def test_a_touched_file_of_equal_content_is_reused(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    settle(dataset.path / "imagesTr" / "a_0000.nii.gz", 50)
    assert preprocess(dataset, plan_of(), "3d", store).written == ()


def test_a_file_that_may_still_change_is_not_judged_by_its_time(
    dataset: DatasetFolder, store: PreprocessedStore
) -> None:
    path = dataset.path / "imagesTr" / "a_0000.nii.gz"
    os.utime(path)
    preprocess(dataset, plan_of(), "3d", store)
    assert store.properties("a")["inputs"]["image_0000"]["stamp"] is None
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-6] + b"\x00" + content[-5:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PartialFailure):
        preprocess(dataset, plan_of(), "3d", store)


@pytest.mark.parametrize(
    ("changes", "is_recomputed"),
    [
        ({"channels": [{"name": "T1", "normalisation": "rescale_0_1"}]}, True),
        ({"crop": "nonzero"}, True),
        ({"channel_copies": 3}, True),
        ({"channel_copies": 1}, False),
        ({"labels": {"background": 0, "b": 200, "a": 100, "c": 300}}, True),
        ({"explanation": ["because"], "mirror_axes": (0,), "memory_bytes": 2}, False),
    ],
)
def test_only_what_the_plan_says_about_voxels_makes_entries_stale(
    dataset: DatasetFolder, store: PreprocessedStore, changes: dict[str, Any], is_recomputed: bool
) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    report = preprocess(dataset, plan_of(**changes), "3d", store)
    assert report.written == (("a", "b", "c", "u") if is_recomputed else ())


def test_a_new_group_is_noted_without_recomputing(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    regrouped = DatasetFolder(path=dataset.path, info=dataset.info.model_copy(update={"groups": {"a": "patient 2"}}))
    assert preprocess(regrouped, plan_of(), "3d", store).written == ()
    assert store.properties("a")["group"] == "patient 2"


def test_worker_processes_write_the_same_bytes(dataset: DatasetFolder, tmp_path: Path) -> None:
    here, elsewhere = PreprocessedStore(tmp_path / "here"), PreprocessedStore(tmp_path / "elsewhere")
    calls: list[tuple[int, int]] = []
    preprocess(dataset, plan_of(), "3d", here)
    preprocess(dataset, plan_of(), "3d", elsewhere, workers=2, progress=lambda done, total: calls.append((done, total)))
    names = sorted(path.name for path in here.folder.iterdir())
    assert len(names) == 3 * 4 + 2
    for name in names:
        assert (here.folder / name).read_bytes() == (elsewhere.folder / name).read_bytes()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_bad_case_is_named_and_the_others_are_stored(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    path = dataset.path / "imagesTr" / "b_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    save(dataset.path / "labelsTr" / "c.nii.gz", np.full((6, 10, 8), 7, np.uint8))
    with pytest.raises(PartialFailure) as caught:
        preprocess(dataset, plan_of(), "3d", store, workers=1)
    assert "2 of 4 cases" in str(caught.value)
    assert "b_0000.nii.gz" in str(caught.value)
    assert "label values [7] are not declared" in str(caught.value)
    assert store.cases() == ["a", "u"]


def test_a_label_off_the_grid_is_refused(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 1.0
    path = dataset.path / "labelsTr" / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 10, 6), np.uint8), moved), path)
    with pytest.raises(InputDataError, match="not on the image's grid"):
        preprocess(dataset, plan_of(), "3d", store, cases=["a"])


def test_a_writer_that_dies_leaves_no_valid_entry(
    dataset: DatasetFolder, store: PreprocessedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    save(dataset.path / "imagesTr" / "a_0000.nii.gz", np.random.default_rng(9).normal(size=(6, 10, 8)))
    write_array, written = np.lib.format.write_array, []

    def die_at_the_label(stream: Any, array: np.ndarray, **options: Any) -> None:
        if written:
            raise RuntimeError("killed")
        written.append(array)
        write_array(stream, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", die_at_the_label)
    with pytest.raises(RuntimeError, match="killed"):
        preprocess(dataset, plan_of(), "3d", store)
    monkeypatch.undo()
    assert store.key_of("a") is None
    assert "a" not in store.cases()
    assert preprocess(dataset, plan_of(), "3d", store).written == ("a",)


def test_an_entry_with_a_missing_array_is_written_again(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    (store.folder / "b.label.npy").unlink()
    assert preprocess(dataset, plan_of(), "3d", store).written == ("b",)


def test_entries_of_departed_cases_are_removed(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "3d", store)
    (dataset.path / "imagesTr" / "c_0000.nii.gz").unlink()
    assert preprocess(dataset, plan_of(), "3d", store, parts=("Tr",)).removed == ("c",)
    assert store.cases() == ["a", "b", "u"]


def test_names_must_be_known_and_unique(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    with pytest.raises(InputDataError, match="no case aa"):
        preprocess(dataset, plan_of(), "3d", store, cases=["aa"])
    (dataset.path / "imagesUn" / "u_0000.nii.gz").rename(dataset.path / "imagesUn" / "a_0000.nii.gz")
    with pytest.raises(InputDataError, match="two parts"):
        preprocess(dataset, plan_of(), "3d", store)


def test_masks_that_the_plan_needs_are_demanded_and_used(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    plan = plan_of(crop="mask")
    with pytest.raises(InputDataError, match=r"masks, which are missing for a, b, c, u") as caught:
        preprocess(dataset, plan, "3d", store)
    assert caught.value.exit_code == 3
    mask = np.zeros((6, 10, 8), np.uint8)
    mask[1:5, 2:9, 1:6] = 1
    save(dataset.path / "masksTr" / "a.nii.gz", mask)
    preprocess(dataset, plan, "3d", store, cases=["a"])
    assert store.read("a").image.shape == (1, 4, 7, 5)
    mask[5] = 1
    save(dataset.path / "masksTr" / "a.nii.gz", mask)
    assert preprocess(dataset, plan, "3d", store, cases=["a"]).written == ("a",)
    assert preprocess(dataset, plan_of(), "3d", store, cases=["a"]).written == ("a",)
    save(dataset.path / "masksTr" / "a.nii.gz", mask * 0)
    assert preprocess(dataset, plan_of(), "3d", store, cases=["a"]).written == ()


class LethalLabels(dict[str, Any]):
    """Kills the process that unpickles it, as the kernel does when memory is full."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int, int]]:
        return _kill_other, (os.getpid(), signal.SIGKILL)


def _kill_other(parent: int, number: int) -> None:
    if os.getpid() != parent:
        os.kill(os.getpid(), number)


def test_a_killed_worker_is_reported_with_its_case(
    dataset: DatasetFolder, store: PreprocessedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(channels=[{"name": "T1", "normalisation": "zscore", "statistics": {}}])
    settings = transform_settings(plan, "3d")
    object.__setattr__(settings.channels[0], "statistics", LethalLabels())
    monkeypatch.setattr("medsegdiff_cli.preprocessing.store.transform_settings", lambda *_: settings)
    with pytest.raises(ResourceError) as caught:
        preprocess(dataset, plan, "3d", store, cases=["b"], workers=1)
    assert "one of: b" in str(caught.value)


def test_slices_of_a_2d_configuration_keep_their_own_distance(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    preprocess(dataset, plan_of(), "2d", store, cases=["a"])
    case = store.read("a")
    assert case.image.shape == (1, 6, 10, 8)
    assert case.image.dtype == np.float32
    assert case.foreground is not None
    assert np.unique(case.foreground[:, 1]).tolist() == [1, 2, 4]


def test_colour_photographs_are_resized_to_the_plan(tmp_path: Path, store: PreprocessedStore) -> None:
    folder, rng = tmp_path / "Dataset002_Photos", np.random.default_rng(0)
    geometry = Geometry.plain((40, 60), has_physical_spacing=False)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 20:40] = 1
    write_image(
        folder / "imagesTr" / "p_0000.png",
        Image(array=rng.integers(0, 256, (3, 40, 60), dtype=np.uint8), geometry=geometry),
    )
    write_label(folder / "labelsTr" / "p.png", label, geometry)
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "disc": 1}}
    atomic.write_json(folder / "dataset.json", {**content, "numTraining": 1, "file_ending": ".png"})
    plan = plan_of(
        labels=content["labels"],
        file_ending=".png",
        channels=[{"name": name, "normalisation": "rgb_0_1"} for name in "RGB"],
        geometry="resize",
        transpose=(0, 1),
        default_config="2d",
        configurations={
            "2d": {
                "size_voxels": (20, 30),
                "median_shape_voxels": (20, 30),
                "patch_size_voxels": (20, 30),
                "batch_size": 2,
                "strides": (),
                "batch_dice": True,
            }
        },
    )
    preprocess(open_dataset(folder), plan, None, store)
    case = store.read("p")
    assert case.image.shape == (3, 20, 30)
    assert case.image.dtype == np.float32
    assert case.properties["class_voxels"] == {"disc": 100}
    assert "foreground_slices" not in case.properties


def test_the_forecast_of_the_disk_is_near_the_truth(dataset: DatasetFolder, store: PreprocessedStore) -> None:
    statistics = dict.fromkeys(
        ("mean", "std", "min", "max", "median", "percentile_00_5", "percentile_99_5", "n_samples"), 0
    )
    cases = [
        CaseFingerprint.model_validate(
            {
                "case": name,
                "part": part,
                "digest": "0",
                "shape_voxels": (6, 10, 8),
                "shape_after_crop_voxels": (6, 10, 8),
                "spacing_mm": (2, 1, 1),
                "has_physical_spacing": True,
                "n_channels": 1,
                "class_voxels": {"a": 24, "b": 9} if part == "Tr" else {},
                "intensity": [statistics],
            }
        )
        for name, part in (("a", "Tr"), ("b", "Tr"), ("c", "Tr"), ("u", "Un"), ("t", "Ts"))
    ]
    fingerprint = Fingerprint.model_validate(
        {
            "dataset": "x",
            "channel_names": ["T1"],
            "class_names": ["background", "a", "b"],
            "cases": cases,
            "foreground_intensity": [],
            "whole_intensity": [],
            "median_relative_size_after_cropping": 1,
        }
    )
    # 480 voxels: 2 bytes of image each, 1 of label; 33 rows of 4 numbers of 4 bytes for each labelled case.
    assert forecast_store_bytes(fingerprint, plan_of(), "3d") == 4 * 480 * 2 + 3 * (480 + 33 * 16)
    preprocess(dataset, plan_of(), "3d", store)
    arrays = sum(path.stat().st_size - 128 for path in store.folder.glob("*.npy"))
    assert arrays == forecast_store_bytes(fingerprint, plan_of(), "3d")
