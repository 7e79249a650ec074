"""Writing a predicted case: names, values and grids of the label map and of the maps beside it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from medsegdiff_cli.artifacts.label_scheme import label_scheme_from_json
from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.transform import Placement
from medsegdiff_cli.inference.fusion import RunningFusion
from medsegdiff_cli.prediction.outputs import label_ending, write_case
from medsegdiff_cli.prediction.settings import OutputSettings

SHAPE = (4, 6, 5)
GEOMETRY = Geometry.plain(SHAPE, (2.0, 1.0, 1.5))
ALL = OutputSettings(probabilities=True, uncertainty=True, members=True)
VALUES = label_scheme_from_json({"background": 0, "liver": 205, "left lung/upper": 420}, None, "test")
REGIONS = label_scheme_from_json({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2], "test")


def crop_of(native: tuple[int, ...], start: int) -> Placement:
    """Place a grid of `native - start` voxels per axis at the far end of the native image, without resampling."""
    box = tuple(slice(start, length) for length in native)
    size = tuple(length - start for length in native)
    return Placement(
        geometry=GEOMETRY,
        transpose=(0, 1, 2),
        crop_box=box,
        resampled_shape=size,
        window=tuple(slice(0, length) for length in size),
        spacing_mm=GEOMETRY.spacing_mm,
        nearest_axis=None,
    )


def fused(*members: np.ndarray, exclusive: bool = True) -> RunningFusion:
    fusion = RunningFusion(exclusive=exclusive, keep_variance=True, keep_labels=True)
    for member in members:
        fusion.add(torch.from_numpy(member.astype(np.float32)))
    return fusion


def random_probabilities(seed: int, n_classes: int = 3, start: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((n_classes, *(length - start for length in SHAPE)))
    return scores / scores.sum(axis=0)


def voxels(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def write(folder, fusion, scheme=VALUES, wanted=ALL, start=0):
    return write_case(folder, "c", ".nii.gz", fusion, crop_of(SHAPE, start), GEOMETRY, scheme, wanted)


def test_classes_come_back_as_the_values_of_the_files(tmp_path):
    probabilities = random_probabilities(0)
    label, outputs = write(tmp_path, fused(probabilities), wanted=OutputSettings())
    expected = np.array([0, 205, 420])[probabilities.argmax(axis=0)]
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(voxels(tmp_path / "c.nii.gz"), expected)
    assert list(outputs) == ["c.nii.gz"]
    assert SimpleITK.ReadImage(str(tmp_path / "c.nii.gz")).GetSpacing() == pytest.approx((1.5, 1.0, 2.0))


def test_outside_of_the_crop_is_certain_background(tmp_path):
    probabilities = random_probabilities(1, start=2)
    label, _ = write(tmp_path, fused(probabilities), start=2)
    inside = (slice(2, None),) * 3
    outside = np.ones(SHAPE, bool)
    outside[inside] = False
    assert set(label[outside]) == {0}
    background = voxels(tmp_path / "probabilities" / "c_background.nii.gz")
    assert set(background[outside]) == {1.0}
    np.testing.assert_allclose(background[inside], probabilities[0], atol=1e-6)
    for name in ("probabilities/c_liver", "uncertainty/c_entropy", "uncertainty/c_variance"):
        path = tmp_path / f"{name}.nii.gz"
        assert not path.exists() or set(voxels(path)[outside]) == {0.0}


def test_names_of_classes_become_names_of_files(tmp_path):
    _, outputs = write(tmp_path, fused(random_probabilities(2)))
    maps = sorted(name for name in outputs if name.startswith("probabilities/"))
    assert maps == [f"probabilities/c_{name}.nii.gz" for name in ("background", "left_lung_upper", "liver")]
    assert all(digest_of_file(tmp_path / name) == digest for name, digest in outputs.items())
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.nii.gz")} == set(outputs)


def test_uncertainty_is_entropy_of_the_mean_and_mean_variance_of_the_classes(tmp_path):
    members = [random_probabilities(seed) for seed in (3, 4, 5)]
    write(tmp_path, fused(*members))
    mean = np.mean(members, axis=0)
    np.testing.assert_allclose(
        voxels(tmp_path / "uncertainty" / "c_entropy.nii.gz"), -(mean * np.log(mean)).sum(axis=0), atol=1e-5
    )
    variance = np.var(members, axis=0).mean(axis=0)
    np.testing.assert_allclose(voxels(tmp_path / "uncertainty" / "c_variance.nii.gz"), variance, atol=1e-6)


def test_members_are_written_one_by_one(tmp_path):
    members = [random_probabilities(seed) for seed in (6, 7)]
    write(tmp_path, fused(*members))
    for number, member in enumerate(members):
        expected = np.array([0, 205, 420])[member.argmax(axis=0)]
        np.testing.assert_array_equal(voxels(tmp_path / "members" / f"c_{number:03d}.nii.gz"), expected)


def test_regions_are_painted_over_each_other_in_their_order(tmp_path):
    whole, core = np.random.default_rng(8).random((2, *SHAPE))
    label, outputs = write(tmp_path, fused(np.stack([whole, core]), exclusive=False), scheme=REGIONS)
    expected = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(voxels(tmp_path / "members" / "c_000.nii.gz"), expected)
    assert "probabilities/c_background.nii.gz" not in outputs


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.nii.gz", ".nii.gz"),
        ("a.nii", ".nii"),
        ("a.mha", ".mha"),
        ("a.png", ".png"),
        ("a.jpg", ".png"),
        ("a.bmp", ".png"),
        ("series", ".nii.gz"),
    ],
)
def test_label_maps_take_the_format_of_the_image_where_it_is_lossless(tmp_path, name, ending):
    path = tmp_path / name
    path.mkdir() if name == "series" else path.write_bytes(b"")
    assert label_ending(path) == ending
