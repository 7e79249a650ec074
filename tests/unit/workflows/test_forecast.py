"""Forecasts of `--dry-run`: right counts, real timings, and nothing written."""

import time
from dataclasses import replace

import pytest
import torch

from medsegdiff_cli.methods.base import Stage
from medsegdiff_cli.workflows import step_timing
from medsegdiff_cli.workflows.forecast import duration_in_words, forecast_prediction, forecast_training
from medsegdiff_cli.workflows.models import find_models
from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run

# One worker makes the volumes for all of them.
pytestmark = pytest.mark.xdist_group("tiny-volumes")


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def setup(tiny_volumes):
    overrides = {"steps": "1000", "patch_size_voxels": "[8, 16, 16]"}
    return set_up_run(
        TrainRequest(
            method="supervised",
            dataset="1",
            workspace=tiny_volumes,
            config="3d",
            scale="tiny",
            overrides=overrides,
        )
    )


@pytest.fixture
def prediction(tiny_volumes, tmp_path):
    (model,) = find_models(["supervised"], tiny_volumes)
    images = next(tiny_volumes.raw.glob("*/imagesTs"))
    return prepare_prediction(PredictRequest(models=(model,), source=images, output=tmp_path / "out", workers=0))


def test_a_training_forecast_counts_and_times_without_writing(setup, tiny_volumes):
    before = files_below(tiny_volumes.raw.parent)
    started = time.perf_counter()
    forecast = forecast_training(setup)
    assert time.perf_counter() - started < 30
    assert files_below(tiny_volumes.raw.parent) == before
    assert forecast["steps"] == "1000 (train)"
    assert forecast["patch"] == f"8 x 16 x 16 voxels, {setup.recipe.batch_size} a step"
    n_parameters = sum(p.numel() for p in setup.new_trainable().parameters())
    assert forecast["parameters"] == f"{n_parameters / 1e6:.2f} million"
    assert forecast["network forwards"].startswith("1000 of")
    assert "measured on this machine" in forecast["time"]
    assert set(forecast) == {"steps", "patch", "parameters", "network forwards", "memory", "disk", "time"}


def test_a_prediction_forecast_counts_the_windows_and_writes_nothing(prediction):
    forecast = forecast_prediction(prediction)
    assert not prediction.job.output.exists()
    assert forecast["cases"] == "2 to predict, 0 there already"
    assert forecast["windows"].split()[0] == str(prediction.windows())
    assert "measured on this machine" in forecast["time"]
    assert set(forecast) == {"cases", "windows", "network forwards", "memory", "disk", "time"}


def test_cases_that_are_predicted_already_cost_nothing(prediction):
    prediction.job.output.mkdir()
    for case in prediction.cases:
        (prediction.job.output / f"{case.case}.json").write_text("{}")
    assert forecast_prediction(prediction)["cases"] == "0 to predict, 2 there already"


def test_more_outputs_take_more_disk(prediction):
    def limit(**wanted):
        job = replace(prediction.job, wanted=replace(prediction.job.wanted, **wanted))
        words = forecast_prediction(replace(prediction, job=job))["disk"].split()
        return float(words[2]) * {"B": 1, "KB": 1024, "MB": 1024**2}[words[3].rstrip(";")]

    # Three classes as float32 beside one byte of label: 13 bytes a voxel instead of 1.
    assert limit(probabilities=True) == pytest.approx(13 * limit(), rel=0.1)


def test_a_network_too_slow_to_time_is_scaled_from_a_small_patch(setup, monkeypatch):
    monkeypatch.setattr(step_timing, "BUDGET_S", 0.0)
    method = setup.new_trainable()
    timing = step_timing.time_training_step(method, method.stages[0], (16, 32, 32), 2, "float32", torch.device("cpu"))
    assert "scaled from a patch of" in timing.how
    assert timing.seconds > 0


def test_timing_leaves_the_weights_as_they_were(setup):
    method = setup.new_trainable()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    stage: Stage = method.stages[0]
    step_timing.time_training_step(method, stage, (8, 16, 16), 2, "float32", torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.253, "0.25 s"), (42, "42 s"), (1080, "18 min"), (9000, "2.5 h"), (90_000, "25 h"), (267_840, "3.1 days")],
)
def test_durations_are_written_for_people(seconds, words):
    assert duration_in_words(seconds) == words
