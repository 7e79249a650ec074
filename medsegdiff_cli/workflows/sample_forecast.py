"""Forecasts of `msd sample`: time, memory, disk and network calls, before anything is written."""

import math
import shutil
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medsegdiff_cli.methods.generating import USUAL_RANGE
from medsegdiff_cli.networks.memory import measure_step
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.prediction.model import build_trainable
from medsegdiff_cli.workflows.forecast import duration_in_words
from medsegdiff_cli.workflows.memory_forecast import CPU_FACTOR
from medsegdiff_cli.workflows.sample_files import case_names
from medsegdiff_cli.workflows.sample_request import PreparedSampling, generate_pairs

_FLOAT_BYTES = 4


def forecast_sampling(prepared: PreparedSampling) -> dict[str, str]:
    """Return what sampling will take, in words; two network calls are timed, nothing is written."""
    request, batch, steps = prepared.request, prepared.batch, len(prepared.walk.grid)
    calls = math.ceil(request.count / batch) * (steps + (request.route == "cheap"))
    one_step = replace(prepared.walk, grid=prepared.walk.grid[:1])
    for _ in range(2):  # the first call also builds kernels and caches
        started = time.perf_counter()
        generate_pairs(prepared, case_names(batch), one_step, USUAL_RANGE)
        seconds = time.perf_counter() - started
    n_voxels = math.prod(prepared.patch)
    free = shutil.disk_usage(next(parent for parent in request.output.absolute().parents if parent.exists())).free
    return {
        "samples": f"{request.count} of {' x '.join(map(str, prepared.patch))} voxels",
        "network forwards": f"{calls} calls with {batch} images: {steps} sampling steps each",
        "training images to compare with": str(len(prepared.found)) if prepared.found else "none found",
        "memory": f"about {format_bytes(memory_of_a_call(prepared))}",
        "disk": f"at most {format_bytes(bytes_on_disk(prepared))}; {format_bytes(free)} are free",
        "time": f"about {duration_in_words(calls * seconds)} ({duration_in_words(seconds)} a call of {n_voxels} "
        "voxels each, measured on this machine; reading training images comes on top)",
    }


def bytes_on_disk(prepared: PreparedSampling) -> int:
    """Return about how many bytes the files take, uncompressed."""
    a_voxel = _FLOAT_BYTES * len(prepared.model.plan.channels) + prepared.objective.draws_masks
    return prepared.request.count * math.prod(prepared.patch) * a_voxel


def memory_of_a_call(prepared: PreparedSampling) -> int:
    """Return what the network takes for a batch."""
    recipe, task = prepared.model.recipe, prepared.objective.task
    shape = (prepared.batch, task.in_channels, *prepared.patch)

    def run(objective: Any) -> Tensor:
        image, _ = objective.estimate(torch.zeros(shape), torch.zeros(prepared.batch, dtype=torch.int64))
        return torch.as_tensor(image)

    measured = measure_step(lambda: build_trainable(recipe, task), run, training=False)
    factor = CPU_FACTOR if prepared.device.type == "cpu" else 1.0
    return int(factor * measured.saved_activations_bytes) + measured.parameters_bytes
