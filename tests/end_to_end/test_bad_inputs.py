"""A night's folder with good and bad images: the good ones are segmented, the bad ones named, and check knew before."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from msd_shell import done, msd
from nifti_files import DIM, PIXDIM, QFORM_CODE, patched, write_sheared

# One trained run serves all of them.
pytestmark = pytest.mark.xdist_group("lab")


@pytest.fixture(scope="module")
def incoming(lab, tmp_path_factory):
    """Two good images, one under an odd name and without an affine, and a dozen bad ones."""
    folder = tmp_path_factory.mktemp("night") / "new images"
    folder.mkdir()
    good = next(lab.images.glob("*_0000.nii.gz"))
    content = good.read_bytes()
    whole = gzip.decompress(content)
    for name, spoilt in {
        "good": content,
        "=1+1 good": content,
        "cut_at_10": content[: len(content) // 10],
        "cut_at_50": content[: len(content) // 2],
        "cut_at_90": content[: len(content) * 9 // 10],
        "short": gzip.compress(whole[: len(whole) - 100]),
        "checksum": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
        "empty": b"",
        "no_gzip": whole,
        "trailing": content + b"x",
        "bomb": content,
        "nan": content,
    }.items():
        (folder / f"{name}.nii.gz").write_bytes(spoilt)
    patched(patched(folder / "=1+1 good.nii.gz", QFORM_CODE, [0, 0], "<i2"), PIXDIM, 1.0, "<f4")
    bomb = patched(folder / "bomb.nii.gz", DIM, [3, 1024, 1024, 1024, 1, 1, 1, 1], "<i2")
    bomb.write_bytes(bomb.read_bytes() + np.random.default_rng(0).bytes(2_200_000))
    image = nib.load(good)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / "nan.nii.gz")
    write_sheared(folder / "sheared.nii.gz", 0.5)
    (folder / "._good.nii.gz").write_bytes(b"resource fork")
    return folder


GOOD = {"good", "=1+1 good"}
BAD = {"cut_at_10", "cut_at_50", "cut_at_90", "short", "checksum", "empty", "no_gzip", "trailing", "bomb", "nan"}


@pytest.mark.fault("F01", "F02", "F03", "F05", "F06", "F08", "F19", "F23", "F28", "F34", "F90")
def test_good_images_are_segmented_and_bad_ones_named(lab, incoming, tmp_path):
    before = {path.name: path.read_bytes() for path in incoming.iterdir()}
    outcome = msd("predict", lab.run, incoming, tmp_path / "out", "--workers", 0)
    assert outcome.code == 5
    assert {path.name: path.read_bytes() for path in incoming.iterdir()} == before
    written = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == GOOD
    for case in {*BAD, "sheared"}:
        assert f"case '{case}' failed" in outcome.stderr
        assert not list((tmp_path / "out").glob(f"{case}*"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert "--fix-affine" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    sidecar = json.loads((tmp_path / "out" / "=1+1 good.json").read_text())
    assert any("no affine" in flag for flag in sidecar["flags"])
    assert "case '=1+1 good': the file has no affine" in outcome.stderr


@pytest.mark.fault("F85", "F86")
def test_check_for_a_model_says_before_the_night_what_predict_says_after_it(lab, incoming):
    outcome = msd("check", incoming, "--for", lab.run, "--json", "--workers", 0)
    assert outcome.code == 3
    problems = outcome.json["problems"]
    errors = {problem["case"] for problem in problems if problem["severity"] == "error"}
    assert errors == {*BAD, "sheared"}
    warnings = {(problem["code"], problem["case"]) for problem in problems if problem["severity"] == "warning"}
    assert ("unlike-training", "=1+1 good") in warnings
    assert outcome.json["n_cases"] == {"new": len(GOOD) + len(BAD) + 1}


@pytest.mark.fault("F86")
def test_intensities_unlike_the_trainings_are_warned_about_and_marked(lab, tmp_path):
    (tmp_path / "in").mkdir()
    image = nib.load(next(lab.images.glob("*_0000.nii.gz")))
    loud = np.asarray(image.dataobj).astype(np.float32) * 1000
    nib.save(nib.Nifti1Image(loud, image.affine), tmp_path / "in/loud.nii.gz")
    outcome = done("predict", lab.run, tmp_path / "in", tmp_path / "out", "--workers", 0)
    flags = json.loads((tmp_path / "out" / "loud.json").read_text())["flags"]
    assert any("lie outside the training images' range" in flag for flag in flags)
    assert "case 'loud': " in outcome.stderr
    assert "lie outside the training images' range" in outcome.stderr


@pytest.mark.fault("F85")
def test_channels_in_another_order_are_refused_by_name(lab, tmp_path):
    dataset = tmp_path / "Dataset002_Other"
    shutil.copytree(lab.images, dataset / "imagesTs")
    info = json.loads((lab.dataset / "dataset.json").read_text())
    (name,) = info["channel_names"].values()
    (dataset / "dataset.json").write_text(json.dumps({**info, "channel_names": {"0": f"not {name}"}}))
    outcome = done("predict", lab.run, dataset / "imagesTs", tmp_path / "out", "--dry-run")
    assert f"the channels are called not {name}" in outcome.stderr
    # The Decathlon's own files call channels modalities, and lack what nnU-Net wants.
    (dataset / "dataset.json").write_text(json.dumps({"modality": {"0": name}, "labels": {"0": "background"}}))
    assert "are called" not in done("predict", lab.run, dataset / "imagesTs", tmp_path / "out", "--dry-run").stderr
    (dataset / "dataset.json").write_text(json.dumps({"licence": "none"}))
    outcome = done("predict", lab.run, dataset / "imagesTs", tmp_path / "out", "--dry-run")
    assert "names no channels: they are not compared" in outcome.stderr
