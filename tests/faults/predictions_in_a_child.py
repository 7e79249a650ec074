"""Predictions whose memory is watched, in a process of their own: `python predictions_in_a_child.py many|draws ...`.

Prints one JSON object with resident memory in MB. The process must be fresh: what other tests have used is never given
back to the system, and would hide what a prediction takes.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import PartialFailure
from medsegdiff_cli.methods.base import Method, Sampling, Stage
from medsegdiff_cli.workflows.predict import PredictRequest, PreparedPrediction, prepare_prediction, run_prediction


class NoisyBalls(Method):
    """A stochastic method without a network: a ball around the window's middle, larger or smaller by chance."""

    def __init__(self, like: Method) -> None:
        super().__init__(like.task, None)
        self.weight = torch.nn.Parameter(torch.ones(()))  # its device is the method's

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def divisor(self) -> tuple[int, ...]:
        return (1,) * self.task.n_dims

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        return {}

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        axes = [torch.linspace(-1, 1, size).square() for size in prepared.shape[2:]]
        distance = sum(axis.view([-1 if i == k else 1 for i in range(len(axes))]) for k, axis in enumerate(axes))
        classes = self.task.n_classes
        radii = torch.arange(classes, 0, -1).view(-1, *[1] * len(axes)) / classes
        scores = [-(distance - radii * (1 + 0.1 * noise.randn(1)[b])).square() for b in range(len(prepared))]
        return torch.stack(scores).softmax(1)[:, None]


def prepared(run: Path, images: Path, output: Path, **changes: object) -> PreparedPrediction:
    return prepare_prediction(PredictRequest(models=(run,), source=images, output=output, **changes))


def many(run: Path, images: Path, output: Path, workers: int) -> dict[str, float]:
    """Predict a folder; memory after a tenth of its cases and at the end, and how long the first case took to come."""
    start, seen, found = time.perf_counter(), 0, {}
    job = prepared(run, images, output, workers=workers)
    n_cases = len(job.cases)

    def on_case(case: str, outcome: str) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            found["seconds_to_first"] = time.perf_counter() - start
        if seen == n_cases // 10:
            found["tenth"], found["tenth_peak"] = resident_mb(), peak_mb()

    try:
        run_prediction(job, on_case)
    except PartialFailure as error:
        found["words"] = str(error)
    return {**found, "end": resident_mb(), "peak": peak_mb(), "cases": seen, "seconds": time.perf_counter() - start}


def draws(run: Path, images: Path, output: Path, n_draws: int) -> dict[str, float]:
    """Predict one image so many times with a stochastic method; memory above what the process had before."""
    job = prepared(run, images, output, draws=n_draws, step_size=1.0, workers=0)
    (model,) = job.job.models
    noisy = replace(model, method=NoisyBalls(model.method).eval())
    before = resident_mb()
    run_prediction(replace(job, job=replace(job.job, models=(noisy,))))
    return {"above": peak_mb() - before}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mb() -> float:
    # Not `ru_maxrss`: a child begins with that of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    what, *places, number = sys.argv[1:]
    print(json.dumps({"many": many, "draws": draws}[what](*map(Path, places), int(number))))
