"""`msd sample` on runs that nobody trained: what stands in the folder, what is promised of it, what is refused."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from msd_shell import done, msd, tree, voxels_of
from toy_generators import DIRECTION, LABELS, write_generator, write_training_images

WALK = ("--steps", 3, "--quiet")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workspace with generators in 2D (PNG) and 3D (NIfTI), and what each drew."""
    workspace = tmp_path_factory.mktemp("shop")
    photos = write_training_images(workspace, "Dataset001_Photos", 2)
    volumes = write_training_images(workspace, "Dataset002_Volumes", 3)
    for dataset, n_dims in ((photos, 2), (volumes, 3)):
        write_generator(workspace, dataset, n_dims)
    done("sample", "pretrain-hybrid__2d", "-o", workspace / "pairs", "--count", 5, "--batch", 3, *WALK, *at(workspace))
    return workspace


def at(workspace):
    return ("--workspace", workspace)


def described(folder):
    return json.loads((folder / "dataset.json").read_text())


def drawn_again(shop, folder, *words, model="pretrain-hybrid__2d"):
    return done("sample", model, "-o", folder, "--count", 5, "--batch", 3, *WALK, *at(shop), "--json", *words).json


@pytest.fixture
def pairs(shop, tmp_path):
    """A copy of the drawn dataset, to be changed."""
    return shutil.copytree(shop / "pairs", tmp_path / "pairs")


def test_pairs_are_a_dataset_that_says_it_is_synthetic(shop):
    folder = shop / "pairs"
    done("check", folder, *at(shop))
    info = described(folder)
    assert (info["synthetic"], info["numTraining"], info["file_ending"]) == (True, 5, ".png")
    assert info["labels"] == LABELS
    made = info["synthesis"]
    assert (made["sampler"], made["steps"], made["seed"], made["route"]) == ("dpm++", 3, 0, "joint")
    assert made["dataset"] == "Dataset001_Photos"
    assert len(made["model_digest"]) == 64
    images = [voxels_of(path) for path in sorted((folder / "imagesTr").iterdir())]
    assert [image.shape for image in images] == [(8, 12)] * 5
    assert all(image.dtype == np.uint8 and image.std() > 1 for image in images)
    assert len({image.tobytes() for image in images}) == 5
    values = {int(value) for path in (folder / "labelsTr").iterdir() for value in np.unique(voxels_of(path))}
    assert values == set(LABELS.values())
    assert (folder / "samples.png").stat().st_size > 1000


def test_intensities_are_those_of_typical_training_images(shop):
    """Training images have a mean of 130 and a deviation of 30; the plan's z-score forgets both."""
    (scale,) = described(shop / "pairs")["synthesis"]["intensities"]
    assert scale["source"] == "training images"
    assert (scale["slope"], scale["offset"]) == (pytest.approx(30, abs=1), pytest.approx(130, abs=1))
    assert (scale["low"], scale["high"]) == (0, 255)


def test_pairs_do_not_depend_on_how_many_are_drawn_together(shop, tmp_path):
    drawn_again(shop, tmp_path / "one", "--batch", 1)
    for path in sorted((tmp_path / "one").rglob("sample_*.png")):
        one, three = (voxels_of(file).astype(int) for file in (path, shop / "pairs" / path.parent.name / path.name))
        if path.parent.name == "imagesTr":
            assert abs(one - three).max() <= 1, "a grey level, by rounding"
        else:
            assert (one != three).mean() < 0.02


def test_what_was_interrupted_is_finished_with_the_bytes_of_an_undisturbed_run(shop, pairs):
    before = tree(pairs)
    for name in ("dataset.json", "memorisation.json", "samples.png", "labelsTr/sample_00002.png"):
        (pairs / name).unlink()
    (pairs / "imagesTr" / "sample_00005_0000.png").write_bytes(b"cut short")
    (pairs / "labelsTr" / "sample_00005.png").unlink()
    report = drawn_again(shop, pairs)
    assert report["written"] == ["sample_00002", "sample_00005"]
    assert len(report["reused"]) == 3
    assert tree(pairs) == before


@pytest.mark.slow
def test_a_larger_count_adds_samples(shop, pairs):
    before = tree(pairs / "labelsTr")
    report = drawn_again(shop, pairs, "--count", 7)
    assert report["written"] == ["sample_00006", "sample_00007"]
    assert before.items() <= tree(pairs / "labelsTr").items()
    assert described(pairs)["numTraining"] == 7
    done("check", pairs, *at(shop))


def test_samples_of_other_settings_are_not_mixed_into_a_folder(shop, pairs):
    before = tree(pairs)
    refused = msd("sample", "pretrain-hybrid__2d", "-o", pairs, *WALK, "--seed", 1, *at(shop))
    assert refused.code == 2
    assert "seed, batch" in refused.stderr
    assert tree(pairs) == before
    drawn_again(shop, pairs, "--seed", 1, "--overwrite")
    assert tree(pairs / "imagesTr").keys() == tree(shop / "pairs" / "imagesTr").keys()
    assert not tree(pairs / "imagesTr").items() & tree(shop / "pairs" / "imagesTr").items()


def test_a_copy_of_a_training_image_is_found_and_named(shop, pairs):
    """A planted copy, of training size so that nothing is resampled; the network's grid is its thumbnail."""
    stretched = SimpleITK.ReadImage(str(shop / "raw/Dataset001_Photos/imagesUn/case_3_0000.png"))
    small = SimpleITK.GetArrayFromImage(stretched)
    rows = np.linspace(0.25, 10.75, 8)
    low = np.floor(rows).astype(int)
    weight = (rows - low)[:, None]
    copy = ((1 - weight) * small[low] + weight * small[low + 1]).round().astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(copy), str(pairs / "imagesTr" / "sample_00004_0000.png"))
    answer = msd("sample", "pretrain-hybrid__2d", "-o", pairs, "--count", 5, "--batch", 3, "--steps", 3, *at(shop))
    assert "sample_00004 is like case_3" in answer.stderr
    found = json.loads((pairs / "memorisation.json").read_text())
    nearest = found["samples"][0]
    assert (nearest["sample"], nearest["training_case"], nearest["is_suspicious"]) == ("sample_00004", "case_3", True)
    assert nearest["distance"] < 0.02
    assert found["limit"] > 0.1
    assert found["suspicious_share"] == pytest.approx(0.2)
    assert (found["n_training_cases"], found["n_training_patches"]) == (5, 5)


def test_a_class_that_no_sample_shows_is_a_warning(shop, pairs):
    for path in (pairs / "labelsTr").iterdir():
        label = voxels_of(path)
        label[label == 7] = 3
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label), str(path))
    answer = msd("sample", "pretrain-hybrid__2d", "-o", pairs, "--count", 5, "--batch", 3, "--steps", 3, *at(shop))
    assert "class 'nodule' is in none of the 5 samples" in answer.stderr
    assert "warning: class-absent" in done("check", pairs, *at(shop)).stdout
    content = {**described(pairs), "synthetic": False}
    (pairs / "dataset.json").write_text(json.dumps(content))
    assert msd("check", pairs, *at(shop)).code == 3, "of real images it is an error"


def test_random_pictures_are_no_copies(shop):
    found = json.loads((shop / "pairs" / "memorisation.json").read_text())
    assert found["suspicious_share"] == 0
    assert [pair["distance"] for pair in found["samples"]] == sorted(pair["distance"] for pair in found["samples"])


@pytest.mark.slow
def test_without_the_training_images_samples_are_drawn_and_that_is_said(shop, tmp_path):
    workspace = tmp_path / "elsewhere"
    photos = write_training_images(workspace, "Dataset001_Photos", 2)
    write_generator(workspace, photos, 2)
    photos.rename(tmp_path / "moved")
    words = ("sample", "pretrain-hybrid__2d", *at(workspace), "--count", 2, "--steps", 3, "-o", tmp_path / "out")
    alone = done(*words)
    assert "--against" in alone.stderr
    assert not (tmp_path / "out" / "memorisation.json").exists()
    assert described(tmp_path / "out")["synthesis"]["intensities"][0]["source"] == "range"
    done(*words, "--against", tmp_path / "moved")
    assert (tmp_path / "out" / "memorisation.json").is_file()


def test_volumes_lie_as_the_training_images_do(shop, tmp_path):
    report = drawn_again(shop, tmp_path / "out", "--count", 2, "--sampler", "ddpm", model="pretrain-hybrid__3d")
    done("check", tmp_path / "out", *at(shop))
    for path in sorted((tmp_path / "out").rglob("*.nii.gz")):
        image = SimpleITK.ReadImage(str(path))
        assert image.GetSize() == (4, 12, 8)
        assert image.GetSpacing() == pytest.approx((1.0, 1.5, 2.0))
        assert image.GetDirection() == pytest.approx(DIRECTION)
    # Each image is larger than the patch: 2 x 1 x 5 windows of each.
    assert report["memorisation"]["n_training_patches"] == 5 * 10


def test_axes_are_put_back_in_the_files_order(tmp_path):
    volumes = write_training_images(tmp_path, "Dataset002_Volumes", 3)
    write_generator(tmp_path, volumes, 3, transpose=[1, 2, 0])
    drawn_again(tmp_path, tmp_path / "out", "--count", 1, model="pretrain-hybrid__3d")
    image = SimpleITK.ReadImage(str(tmp_path / "out/imagesTr/sample_00001_0000.nii.gz"))
    # The network's axes 8, 12, 4 of 2, 1.5, 1 mm are the file's y, x, z.
    assert image.GetSize() == (12, 8, 4)
    assert image.GetSpacing() == pytest.approx((1.5, 2.0, 1.0))


def test_a_diffusion_model_fills_the_unlabelled_part(shop, tmp_path):
    write_generator(shop, shop / "raw" / "Dataset001_Photos", 2, method="pretrain-diffusion")
    words = ("--dataset", 90, "--name", "Drawn", "--count", 3, *WALK, *at(shop))
    done("sample", "pretrain-diffusion__2d", *words)
    done("check", 90, *at(shop))
    folder = shop / "raw" / "Dataset090_Drawn"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["imagesUn"]
    assert len(list((folder / "imagesUn").iterdir())) == 3
    assert described(folder)["synthetic"] is True
    refused = msd("sample", "pretrain-diffusion__2d", "-o", tmp_path / "x", "--route", "cheap", *at(shop))
    assert refused.code == 2
    assert "without masks" in refused.stderr


@pytest.mark.slow
def test_overlapping_regions_become_label_values(tmp_path):
    photos = write_training_images(tmp_path, "Dataset001_Photos", 2)
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    write_generator(tmp_path, photos, 2, labels=labels, regions_class_order=[1, 2])
    drawn_again(tmp_path, tmp_path / "out")
    done("check", tmp_path / "out", *at(tmp_path))
    assert described(tmp_path / "out")["regions_class_order"] == [1, 2]
    values = {int(v) for path in (tmp_path / "out" / "labelsTr").iterdir() for v in np.unique(voxels_of(path))}
    assert values == {0, 1, 2}


def test_what_draws_no_images_is_refused_and_the_pretraining_named(shop, tmp_path):
    photos = shop / "raw" / "Dataset001_Photos"
    supervised = write_generator(tmp_path, photos, 2, method="pretrain-supervised")
    parent = {"run": "pretrain-hybrid__2d/fold_0", "weights_sha256": "0" * 64}
    hybrid = write_generator(tmp_path, photos, 2, method="hybrid", parent=parent)
    for run, what in ((supervised, "pretrain-diffusion or pretrain-hybrid"), (hybrid, "pretrain-hybrid__2d/fold_0")):
        refused = msd("sample", run, "-o", tmp_path / "out")
        assert refused.code == 2
        assert "draws no images" in refused.stderr
        assert what in refused.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-o", "OUT", "--dataset", 5, "--name", "New"], "where samples go is not clear"),
        (["--dataset", 5], "where samples go is not clear"),
        (["--dataset", 1, "--name", "Other"], "id 1 is taken by Dataset001_Photos"),
        (["-o", "OUT", "--mask-start", "nan"], "masks cannot start at nan"),
        (["-o", "OUT", "--sampler", "euler"], "euler"),
        (["-o", "OUT", "--steps", 21], "21 sampling steps"),
        (["-o", "OUT", "--fold", 3], "fold"),
        (["-o", "OUT", "--route", "joined"], "joint"),
        (["-o", "OUT", "--against", "99"], "no dataset '99'"),
        (["-o", "PHOTOS"], "did not make"),
        (["-o", "SCANS"], "did not write"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(shop, tmp_path, words, what):
    photos = shop / "raw" / "Dataset001_Photos"
    places = {"OUT": tmp_path / "out", "PHOTOS": photos, "SCANS": photos / "imagesUn"}
    before = tree(photos)
    refused = msd("sample", "pretrain-hybrid__2d", *(places.get(word, word) for word in words), *at(shop))
    assert refused.code == 2
    assert what in refused.stderr
    assert tree(photos) == before
    assert not (tmp_path / "out").exists()


def test_samples_go_into_a_folder_named_after_the_run_unless_told_otherwise(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("sample", "pretrain-hybrid__2d", "--count", 1, "--steps", 2, *at(shop))
    assert (tmp_path / "pretrain-hybrid__2d_samples" / "dataset.json").is_file()


def test_a_forecast_writes_nothing(shop, tmp_path):
    answer = done("sample", "pretrain-hybrid__2d", "-o", tmp_path / "out", "--dry-run", "--json", *at(shop)).json
    assert answer["forecast"]["network forwards"] == "20 calls with 16 images: 20 sampling steps each"
    assert not (tmp_path / "out").exists()
