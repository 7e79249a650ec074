"""Forecasts for `--dry-run`: time, memory, disk and network calls, before anything is written."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsegdiff_cli.artifacts.fingerprint import read_fingerprint
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.reading import read_geometry
from medsegdiff_cli.imaging.transform import grid_shape
from medsegdiff_cli.inference.volume import InferenceSettings, windows_of
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.networks.memory import measure_step
from medsegdiff_cli.paths import FINGERPRINT_JSON
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.prediction.case_steps import PredictionJob
from medsegdiff_cli.prediction.model import build_method
from medsegdiff_cli.preprocessing.store import forecast_store_bytes
from medsegdiff_cli.workflows.fold_validation import other_samplers
from medsegdiff_cli.workflows.initial_weights import give_initial_weights
from medsegdiff_cli.workflows.memory_forecast import CPU_FACTOR
from medsegdiff_cli.workflows.predict import PreparedPrediction, label_maps_of, least_memory
from medsegdiff_cli.workflows.run_setup import RunSetup
from medsegdiff_cli.workflows.sampling import visited_timesteps
from medsegdiff_cli.workflows.step_timing import Timing, time_prediction_call, time_training_step

_WEIGHT_BYTES = 4
# A step checkpoint holds weights, their average and two moments of the optimiser; two of them are kept, and beside
# them the prediction weights `last` and `best`.
_COPIES_ON_DISK = 2 * 4 + 2
_QUICK_VALIDATIONS = 10


def forecast_runs(setups: Sequence[RunSetup]) -> dict[str, str]:
    """Return `forecast_training` of several runs; a pretraining's lines say so."""
    return {
        f"pretraining {name}" if setup.is_pretraining else name: words
        for setup in setups
        for name, words in forecast_training(setup).items()
    }


def forecast_training(setup: RunSetup) -> dict[str, str]:
    """Return what a training will take, in words; a few steps of the real network are timed, nothing is written."""
    recipe, record, device = setup.recipe, setup.record, setup.request.device
    method = setup.new_trainable()
    give_initial_weights(setup, method)  # what does not fit is refused now, as it would be later
    n_parameters = sum(parameter.numel() for parameter in method.parameters())
    steps = {stage.name: stage.steps for stage in record.stages}
    forwards = sum(steps[stage.name] * stage.views for stage in method.stages)
    validation = _validation_windows(setup)
    forecast = {
        "steps": ", ".join(f"{count} ({name})" for name, count in steps.items()),
        "patch": f"{_by(recipe.patch_size_voxels)} voxels, {recipe.batch_size} a step{_remarks(setup.patch.notes)}",
        "parameters": f"{n_parameters / 1e6:.2f} million",
        "network forwards": f"{forwards} of {recipe.batch_size} patches to train, "
        f"about {validation} windows to validate",
        "memory": _training_memory(setup),
        "disk": _training_disk(setup, n_parameters),
    }
    total_s, parts = 0.0, []
    for stage in method.stages:
        timing = time_training_step(
            method, stage, recipe.patch_size_voxels, recipe.batch_size, record.precision, device
        )
        total_s += steps[stage.name] * timing.seconds
        parts.append(f"{duration_in_words(timing.seconds)} a step, {timing.how}")
    forecast["time"] = (
        f"about {duration_in_words(total_s)} ({'; '.join(parts)}; reading, augmenting and validating come on top)"
    )
    return forecast


def _remarks(notes: Sequence[str]) -> str:
    return f" ({' '.join(notes)})" if notes else ""


def forecast_prediction(prepared: PreparedPrediction) -> dict[str, str]:
    """Return what a prediction will take, in words; cases that are there already count as done."""
    job = prepared.job
    pending = tuple(case for case in prepared.cases if not (job.output / f"{case.case}.json").is_file())
    windows = replace(prepared, cases=pending).windows()
    model, inference = job.models[0], job.inference
    calls = math.ceil(windows / inference.window_batch)
    forecast = {
        "cases": f"{len(pending)} to predict, {len(prepared.cases) - len(pending)} there already",
        "windows": f"{windows} of {_by(inference.patch_size)} voxels, over all models, draws and mirrored versions",
        "network forwards": _network_forwards(job, calls),
    }
    if not pending:
        return forecast
    native = [read_geometry(case.images[0]) for case in pending]
    timing = time_prediction_call(
        model.method, inference.patch_size, inference.window_batch, inference.precision, inference.sampling
    )
    forecast["memory"] = _prediction_memory(prepared, max(arrays_bytes(job, geometry) for geometry in native))
    forecast["disk"] = _prediction_disk(prepared, [math.prod(geometry.shape) for geometry in native])
    forecast["time"] = _prediction_time(calls, timing)
    return forecast


def _network_forwards(job: PredictionJob, calls: int) -> str:
    windows, sampling = f"with {job.inference.window_batch} windows", job.inference.sampling
    steps = len(visited_timesteps(job.models, sampling))
    if not steps:
        return f"about {calls} calls {windows}"
    most = "at most" if sampling.stop_change is not None else "about"
    return f"{most} {calls * steps} calls {windows}: {calls} x {steps} sampling steps"


def _prediction_time(calls: int, timing: Timing) -> str:
    return (
        f"about {duration_in_words(calls * timing.seconds)} ({duration_in_words(timing.seconds)} a call, {timing.how}; "
        "reading and writing come on top)"
    )


def _training_memory(setup: RunSetup) -> str:
    where = "of RAM" if setup.request.device.type == "cpu" else "on the device"
    if setup.patch.forecast_bytes is None:
        return "not measured"
    return (
        f"about {format_bytes(setup.patch.forecast_bytes)} {where}, planned for {format_bytes(setup.plan.memory_bytes)}"
    )


def _training_disk(setup: RunSetup, n_parameters: int) -> str:
    known = store_bytes(setup)
    store = "unknown" if known is None else format_bytes(known)
    checkpoints = format_bytes(checkpoint_bytes(n_parameters))
    return f"preprocessed images {store}, checkpoints {checkpoints}; {_free(setup.request.workspace.root)}"


def checkpoint_bytes(n_parameters: int) -> int:
    """Return what a run's checkpoints take on the disk."""
    return n_parameters * _WEIGHT_BYTES * _COPIES_ON_DISK


def store_bytes(setup: RunSetup) -> int | None:
    """Return what the preprocessed cases of a run take on the disk; None when the dataset's fingerprint is gone."""
    path = setup.request.workspace.preprocessed / setup.dataset.name / FINGERPRINT_JSON
    if not path.is_file():
        return None
    fingerprint = read_fingerprint(path)
    used = {*setup.record.train_cases, *setup.record.val_cases}
    cases = tuple(case for case in fingerprint.cases if case.case in used)
    return forecast_store_bytes(fingerprint.model_copy(update={"cases": cases}), setup.plan, setup.record.config)


def _validation_windows(setup: RunSetup) -> int:
    """Return about how many windows are predicted: quick validations while training, and the one at the end."""
    training, configuration = setup.recipe.training, setup.plan.configuration(setup.record.config)[1]
    settings = InferenceSettings(
        patch_size=setup.recipe.patch_size_voxels,
        slices=setup.slices,
        step_size=setup.recipe.prediction.step_size,
    )
    a_case = windows_of(configuration.median_shape_voxels, settings)
    n_cases = len(setup.record.val_cases)
    every = training.validate_every_steps
    if every is None:
        quick = _QUICK_VALIDATIONS
    else:
        quick = training.steps // every if every else 0
    quick *= 1 + len(other_samplers(setup.recipe))
    return a_case * (n_cases + quick * min(n_cases, training.validation_cases))


def _prediction_memory(prepared: PreparedPrediction, arrays: int) -> str:
    device = next(prepared.job.models[0].method.parameters()).device
    network = network_bytes(prepared)
    if device.type == "cpu":
        return f"about {format_bytes(network + arrays)} of RAM for the largest case"
    return f"about {format_bytes(network)} on the device and {format_bytes(arrays)} of RAM for the largest case"


def arrays_bytes(job: PredictionJob, native: Geometry) -> int:
    """Return what the arrays of a case take; with workers, also those of the cases read and written meanwhile.

    The one read ahead has its voxels twice while they are decoded, and on the network's grid; the one written has both
    images, its mean probabilities, and these on its own grid.
    """
    least = least_memory(job, native)
    if not job.workers:
        return least
    task = job.models[0].method.task
    grid_voxels = math.prod(grid_shape(native.shape, native.spacing_mm, job.transform))
    on_grid = grid_voxels * (2 * task.in_channels + task.n_classes)
    on_image = math.prod(native.shape) * (3 * task.in_channels + task.n_classes)
    return least + np.dtype(np.float32).itemsize * (on_grid + on_image)


def network_bytes(prepared: PreparedPrediction) -> int:
    """Return what the models and the network's windows of one call take on the device."""
    job, model = prepared.job, prepared.job.models[0]
    task, inference = model.method.task, job.inference
    weights = sum(p.numel() for loaded in job.models for p in loaded.method.parameters()) * _WEIGHT_BYTES

    def build() -> Method:
        return build_method(model.recipe, task)

    def run(method: Any) -> torch.Tensor:
        windows = torch.zeros((inference.window_batch, task.in_channels, *inference.patch_size))
        noise = NoiseSource([(0, index) for index in range(inference.window_batch)])
        # One step stands for all: nothing of the others is held.
        sampling = replace(inference.sampling, steps=1, start=None, stop_change=None)
        return method.predict(method.prepare(windows), noise, sampling)

    device = next(model.method.parameters()).device
    factor = CPU_FACTOR if device.type == "cpu" else 1.0
    return int(factor * measure_step(build, run, training=False).saved_activations_bytes) + weights


def _prediction_disk(prepared: PreparedPrediction, native_voxels: Sequence[int]) -> str:
    """Return an upper limit: files as large as if nothing could be compressed."""
    wanted, task = prepared.job.wanted, prepared.job.models[0].method.task
    maps = (task.n_classes if wanted.probabilities else 0) + (2 if wanted.uncertainty else 0)
    a_voxel = label_maps_of(prepared.job) + maps * np.dtype(np.float32).itemsize
    return f"at most {format_bytes(a_voxel * sum(native_voxels))}; {_free(prepared.job.output)}"


def _free(folder: Path) -> str:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return f"{format_bytes(shutil.disk_usage(existing).free)} are free"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def duration_in_words(seconds: float) -> str:
    """Return a duration for people: 0.25 s, 42 s, 18 min, 2.5 h, 3.1 days."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {name}" if name == "h" and value < 10 else f"{value:.0f} {name}"
    return f"{seconds / 86_400:.1f} days"
