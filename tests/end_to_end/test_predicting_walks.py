"""`msd predict` with a method that samples: steps, draws, canvases, early ends, warm starts, and what is written."""

import csv
import json

import numpy as np
import pytest
import torch
from msd_shell import done, images_only, labels_of, msd, tree, voxels_of, write_volume
from toy_models import DATASET, RECIPE, RUN, write_run_folder

STEPS = ("t1000", "t0500", "t0000")
SHAPE = (12, 8, 14)


def recipe_of(method, **prediction):
    settings = dict(RECIPE["method_settings"])
    if method != "supervised":
        settings["strategy"] = "recycling"
    return {**RECIPE, "method": method, "method_settings": settings, "prediction": prediction}


def scatter(weights):
    """Give all parameters random numbers: as they are born, the last layer predicts nothing."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and "timestep_sampler" not in name:
            weights[name] = 0.3 * torch.randn(tensor.shape, generator=random)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Runs of two methods and two images of two windows each."""
    folder = tmp_path_factory.mktemp("walks")
    for method in ("recycling", "supervised"):
        write_run_folder(folder / method, recipe=recipe_of(method), change=scatter)
    for case in range(2):
        values = np.random.default_rng(case).normal(size=SHAPE).astype(np.float32)
        write_volume(folder / "images" / f"case{case}.nii.gz", values, (1.0, 1.0, 1.0))
    return folder


@pytest.fixture(scope="module")
def predict(shop):
    def run(output, *words, method="recycling", source=shop / "images"):
        return msd("predict", shop / method / DATASET / RUN, source, output, "--workers", 0, "--device", "cpu", *words)

    return run


@pytest.fixture(scope="module")
def reference(predict, tmp_path_factory):
    """Three draws of three steps with every file."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    words = ("--steps", 3, "--draws", 3, "--canvas", "shared", "--save-steps", "--save-members")
    assert predict(folder, *words).code == 0
    return folder


def test_every_step_of_every_draw_is_written_under_its_timestep(reference):
    info = json.loads((reference / "prediction.json").read_text())
    assert (info["visited_timesteps"], info["draws"]) == ([1000, 500, 0], 3)
    steps, members, label = labels_of(reference / "steps"), labels_of(reference / "members"), labels_of(reference)
    assert set(steps) == {f"case{case}_{t}" for case in range(2) for t in STEPS}
    parts = [f"case{case}_{draw:03d}" for case in range(2) for draw in range(3)]
    assert set(members) == {*parts, *(f"{part}_{t}" for part in parts for t in STEPS)}
    for case in label:
        np.testing.assert_array_equal(steps[f"{case}_t0000"], label[case])
        assert (steps[f"{case}_t1000"] != label[case]).any()
    for part in parts:
        np.testing.assert_array_equal(members[f"{part}_t0000"], members[part])
    outputs = json.loads((reference / "case0.json").read_text())["outputs"]
    assert len(outputs) == 1 + 3 + 3 * 4
    assert json.loads((reference / "case0.json").read_text())["steps_taken"] == 3


def test_the_table_gives_the_spread_of_the_draws_own_volumes(reference, predict, tmp_path):
    rows = list(csv.DictReader((reference / "volumes.csv").read_text().splitlines()))
    members = labels_of(reference / "members")
    assert len(rows) == 4
    for row in rows:
        value = ("background", "organ", "nodule").index(row["class"])
        counts = [(members[f"{row['case']}_{draw:03d}"] == value).sum() for draw in range(3)]
        expected = [np.mean(counts), *np.percentile(counts, (2.5, 97.5))]
        found = [float(row[f"voxels_{name}"]) for name in ("mean", "low", "high")]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        in_ml = [float(row[f"volume_ml_{name}"]) for name in ("mean", "low", "high")]
        np.testing.assert_allclose(in_ml, np.array(expected) / 1000, rtol=1e-5)
    assert any(float(row["voxels_high"]) > float(row["voxels_low"]) for row in rows)
    assert predict(tmp_path / "one").code == 0
    (row, *_) = csv.DictReader((tmp_path / "one" / "volumes.csv").read_text().splitlines())
    assert (row["voxels_mean"], row["volume_ml_high"]) == ("", "")


@pytest.mark.parametrize("canvas", [pytest.param("window", marks=pytest.mark.slow), "shared"])
def test_shards_and_their_order_change_no_byte(predict, tmp_path, canvas):
    words = ("--steps", 2, "--draws", 2, "--canvas", canvas, "--save-steps", "--save-members")
    assert predict(tmp_path / "whole", *words).code == 0
    for shard in (1, 0):
        assert predict(tmp_path / "shards", *words, "--num-shards", 2, "--shard-id", shard).code == 0
    assert images_only(tmp_path / "whole") == images_only(tmp_path / "shards")


def test_asking_for_what_the_model_does_anyway_is_the_same_prediction(predict, tmp_path):
    assert predict(tmp_path / "out").code == 0
    again = predict(tmp_path / "out", "--sampler", "ddpm", "--steps", 5, "--json")
    assert (again.code, len(again.json["reused"])) == (0, 2)
    for words in (("--steps", 4), ("--sampler", "ddim"), ("--canvas", "shared"), ("--stop-change", 0.2)):
        other = predict(tmp_path / "out", *words)
        assert other.code == 2
        assert "other settings" in other.stderr


def test_walks_end_where_labels_no_longer_change_and_the_sidecar_says_after_how_many_steps(predict, tmp_path):
    words = ("--steps", 8, "--stop-change", 1, "--save-steps", "--draws", 2)
    for canvas in ("window", "shared"):
        assert predict(tmp_path / canvas, *words, "--canvas", canvas).code == 0
        taken = [json.loads((tmp_path / canvas / f"case{case}.json").read_text())["steps_taken"] for case in range(2)]
        # Fewer than all foreground voxels change from the first step to the second.
        assert taken == [2, 2]
        assert len(labels_of(tmp_path / canvas / "steps")) == 2 * 8


@pytest.mark.fault("F100")
@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        (("--sampler", "ddmp"), "unknown sampler 'ddmp'", "did you mean 'ddpm'"),
        (("--canvas", "sharde"), "--canvas 'sharde' is unknown", "did you mean 'shared'"),
        (("--steps", 2000), "2000 sampling steps", "1 to 1001"),
        (("--eta", 0.5), "no eta", "ddim"),
        (("--start-t", 5), "needs a segmentation to start from", "--init-from"),
        (("--init-from", "nowhere"), "needs the timestep", "--start-t"),
    ],
)
def test_sampling_that_cannot_be_is_code_2_with_what_to_do(predict, tmp_path, words, message, fix, monkeypatch):
    monkeypatch.setattr("medsegdiff_cli.workflows.warm_start.find_start", lambda *_: tmp_path)
    outcome = predict(tmp_path / "out", *words)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert fix in outcome.stderr.partition("to do:")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("F100")
@pytest.mark.parametrize(
    "words", [("--sampler", "ddim"), ("--steps", 5), ("--canvas", "shared"), ("--save-steps",), ("--stop-change", 0.1)]
)
def test_a_method_that_predicts_at_once_refuses_to_sample(predict, tmp_path, words):
    outcome = predict(tmp_path / "out", *words, method="supervised")
    assert outcome.code == 2
    assert "method 'supervised'" in outcome.stderr
    assert words[0] in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_warm_start_keeps_the_segmentation_that_is_hardly_noised(predict, reference, shop, tmp_path):
    words = ("--init-from", reference, "--start-t", 100, "--steps", 2)
    assert predict(tmp_path / "warm", *words).code == 0
    info = json.loads((tmp_path / "warm" / "prediction.json").read_text())
    assert info["visited_timesteps"] == [100, 0]
    assert info["settings"]["start_from"] == json.loads((reference / "prediction.json").read_text())["model_digests"]
    sidecar = json.loads((tmp_path / "warm" / "case0.json").read_text())
    assert set(sidecar["input_digests"]) == {"case0.nii.gz", "start:case0.nii.gz"}
    # Another segmentation to start from is another prediction.
    other = predict(tmp_path / "warm", "--init-from", shop / "recycling" / DATASET / RUN, *words[2:])
    assert other.code == 2
    for method in ("recycling", "supervised"):
        started = shop / method / DATASET / RUN
        assert predict(tmp_path / method, "--init-from", started, *words[2:]).code == 0
    same_start = predict(tmp_path / "again", *words)
    assert same_start.code == 0
    assert images_only(tmp_path / "again") == images_only(tmp_path / "warm")
    assert images_only(tmp_path / "recycling") != images_only(tmp_path / "supervised")


def test_a_case_without_a_segmentation_to_start_from_fails_alone(predict, reference, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    for name in ("prediction.json", "case1.nii.gz"):
        (half / name).write_bytes((reference / name).read_bytes())
    before = tree(half)
    outcome = predict(tmp_path / "out", "--init-from", half, "--start-t", 300)
    assert outcome.code == 5
    assert "no segmentation of 'case0' to start from" in outcome.stderr
    assert set(labels_of(tmp_path / "out")) == {"case1"}
    assert tree(half) == before


def test_a_segmentation_on_another_grid_is_refused(predict, reference, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "prediction.json").write_bytes((reference / "prediction.json").read_bytes())
    for case in range(2):
        label = voxels_of(reference / f"case{case}.nii.gz")
        write_volume(moved / f"case{case}.nii.gz", label, (1.0, 1.0, 1.0), origin=(5.0, 0.0, 0.0))
    outcome = predict(tmp_path / "out", "--init-from", moved, "--start-t", 300)
    assert outcome.code == 3
    assert "not on the image's grid" in outcome.stderr


def test_staple_weighs_the_draws(predict, reference, tmp_path):
    words = ("--steps", 3, "--draws", 3, "--canvas", "shared", "--save-members", "--fusion", "staple")
    assert predict(tmp_path / "out", *words).code == 0
    members, fused, mean = labels_of(tmp_path / "out" / "members"), labels_of(tmp_path / "out"), labels_of(reference)
    assert all(
        (members[name] == other).all() for name, other in labels_of(reference / "members").items() if name in members
    )
    for case, label in fused.items():
        draws = np.stack([members[f"{case}_{draw:03d}"] for draw in range(3)])
        unanimous = (draws == draws[0]).all(0)
        np.testing.assert_array_equal(label[unanimous], draws[0][unanimous])
    assert any((fused[case] != mean[case]).any() for case in fused)


def test_a_recipe_averages_logarithms_with_uniform_weights(shop, reference, tmp_path):
    run = write_run_folder(
        tmp_path / "log", recipe=recipe_of("recycling", overlap="log-mean", window_weights="uniform"), change=scatter
    )
    done("predict", run, shop / "images", tmp_path / "out", "--workers", 0, "--save-probabilities", "--steps", 2)
    settings = json.loads((tmp_path / "out" / "prediction.json").read_text())["settings"]
    assert (settings["overlap"], settings["window_weights"]) == ("log-mean", "uniform")
    names = ("background", "organ", "nodule")
    maps = [voxels_of(tmp_path / "out" / "probabilities" / f"case0_{name}.nii.gz") for name in names]
    np.testing.assert_allclose(sum(maps), 1, atol=1e-5)


def test_a_forecast_multiplies_windows_by_draws_and_steps(predict, tmp_path):
    words = ("--steps", 4, "--draws", 3, "--window-batch", 1, "--dry-run", "--json")
    forecast = predict(tmp_path / "out", *words).json["forecast"]
    windows = 2 * 2 * 3 * 3  # cases, windows along two axes, draws
    assert forecast["windows"].split()[0] == str(windows)
    assert f"{windows * 4} calls" in forecast["network forwards"]
    assert not (tmp_path / "out").exists()
