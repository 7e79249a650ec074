"""Timing of the real network on this machine, for a few seconds at most: the ground of every forecast of time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.volume import autocast
from medsegdiff_cli.methods.base import Method, Sampling, Stage, Trainable, enter_stage
from medsegdiff_cli.workflows.memory_forecast import example_batch

# A whole step is timed when it fits into this; else the largest patch that does is, and its time scaled by the voxels.
BUDGET_S = 6.0
_SHARES = (0.25, 0.5, 0.7)


@dataclass(frozen=True)
class Timing:
    """Seconds of one step or network call.

    Attributes:
        how: sentence part on where the number comes from.
    """

    seconds: float
    how: str


def time_training_step(
    method: Trainable, stage: Stage, patch_size: Sequence[int], batch_size: int, precision: str, device: torch.device
) -> Timing:
    """Time a forward and backward pass; weights are not changed, gradients are dropped afterwards."""
    method = method.to(device).train()
    enter_stage(method, stage)

    def step(patch: tuple[int, ...], batch: int) -> None:
        images = example_batch(method.task, patch, batch, stage).to(device)
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
    method: Trainable,
    patch_size: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> Timing:
    """Time ever larger patches, up to the whole batch where the budget allows; small ones cost more per voxel."""
    whole = tuple(patch_size)
    rungs = [(_part(whole, share, method.divisor), 1) for share in _SHARES]
    rungs = [*dict.fromkeys([*rungs, (whole, 1), (whole, batch_size)])]
    run(*rungs[0])  # the first call also builds kernels and caches
    started = time.perf_counter()
    for index, (patch, batch) in enumerate(rungs):
        seconds = _seconds(run, patch, batch, device)
        if (patch, batch) == rungs[-1]:
            break
        larger, more = rungs[index + 1]
        expected_s = seconds * more * math.prod(larger) / (batch * math.prod(patch))
        if time.perf_counter() - started + expected_s > BUDGET_S:
            scaled_s = seconds * batch_size * math.prod(whole) / (batch * math.prod(patch))
            words = " x ".join(map(str, patch))
            return Timing(scaled_s, f"scaled from a patch of {words} voxels measured on this machine")
    return Timing(seconds, "measured on this machine")


def _part(whole: tuple[int, ...], share: float, divisor: Sequence[int]) -> tuple[int, ...]:
    """Return a patch with about this share of each edge.

    Two voxels an axis stay at the deepest level: normalisation of a single one is no normalisation.
    """
    edges = zip(whole, divisor, strict=True)
    return tuple(min(edge, step * max(2, round(edge * share / step))) for edge, step in edges)


def _seconds(
    run: Callable[[tuple[int, ...], int], None], patch: tuple[int, ...], batch: int, device: torch.device
) -> float:
    _wait(device)
    started = time.perf_counter()
    run(patch, batch)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
