"""Timing of the real network on this machine, for a few seconds at most: the ground of every forecast of time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.volume import autocast
from medsegdiff_cli.methods.base import Method, Sampling, Stage, enter_stage
from medsegdiff_cli.workflows.memory_forecast import example_batch

# A whole step is timed when it fits into this; else a smaller patch is timed and its time scaled by the voxels.
BUDGET_S = 4.0
_SMALL_SHARE = 0.25


@dataclass(frozen=True)
class Timing:
    """Seconds of one step or network call.

    Attributes:
        how: sentence part on where the number comes from.
    """

    seconds: float
    how: str


def time_training_step(
    method: Method, stage: Stage, patch_size: Sequence[int], batch_size: int, precision: str, device: torch.device
) -> Timing:
    """Time a forward and backward pass; weights are not changed, gradients are dropped afterwards."""
    method = method.to(device).train()
    enter_stage(method, stage)

    def step(patch: tuple[int, ...], batch: int) -> None:
        images = example_batch(method.task, patch, batch)
        if stage.supervision == "none":
            images = replace(images, label=None)
        images = replace(images, views=(images.image,) * (stage.views - 1)).to(device)
        noise = NoiseSource([(0, index) for index in range(batch)], device)
        with autocast(precision, device):
            terms = method.loss(images, stage, noise)
        torch.stack(list(terms.values())).sum().backward()
        method.zero_grad(set_to_none=True)

    return _measure(step, method, patch_size, batch_size, device)


def time_prediction_call(
    method: Method, patch_size: Sequence[int], batch_size: int, precision: str, sampling: Sampling
) -> Timing:
    """Time a call on a batch of windows."""
    device = next(method.parameters()).device

    def call(patch: tuple[int, ...], batch: int) -> None:
        windows = torch.zeros((batch, method.task.in_channels, *patch), device=device)
        noise = NoiseSource([(0, index) for index in range(batch)], device)
        with torch.inference_mode(), autocast(precision, device):
            method.predict(method.prepare(windows), noise, sampling)

    return _measure(call, method, patch_size, batch_size, device)


def _measure(
    run: Callable[[tuple[int, ...], int], None],
    method: Method,
    patch_size: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> Timing:
    """Time a small patch first, which tells whether the whole batch can be timed."""
    whole = tuple(patch_size)
    # Two voxels an axis stay at the deepest level: normalisation of a single one is no normalisation.
    small = tuple(
        min(edge, divisor * max(2, round(edge * _SMALL_SHARE / divisor)))
        for edge, divisor in zip(whole, method.divisor, strict=True)
    )
    run(small, 1)  # the first call also builds kernels and caches
    small_s = _seconds(run, small, 1, device)
    scaled_s = small_s * batch_size * math.prod(whole) / math.prod(small)
    if scaled_s > BUDGET_S / 2:
        words = " x ".join(map(str, small))
        return Timing(scaled_s, f"scaled from a patch of {words} voxels measured on this machine")
    run(whole, batch_size)
    return Timing(_seconds(run, whole, batch_size, device), "measured on this machine")


def _seconds(
    run: Callable[[tuple[int, ...], int], None], patch: tuple[int, ...], batch: int, device: torch.device
) -> float:
    """Return the time of the faster of two runs."""
    times = []
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        run(patch, batch)
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
