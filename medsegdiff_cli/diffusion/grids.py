"""Timestep grids: which training timesteps a sampler visits, from noisy to clean.

A grid is a strictly decreasing tuple of *training* indices. The network is always told the training index, however
few steps are kept: an index counted among the kept steps would stand for another noise level.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from medsegdiff_cli.diffusion.schedules import CLEAN, Schedule
from medsegdiff_cli.errors import UsageError

Grid = tuple[int, ...]


def linspace_grid(T: int, steps: int) -> Grid:
    """Return evenly spaced timesteps that contain T-1 and 0: (1000, 750, 500, 250, 0) for T = 1001 in 5 steps.

    Other spacings of the field never visit T-1, the pure noise that sampling starts from. A single step is (T-1,).

    Raises:
        UsageError: `steps` is below 1 or above T.
    """
    if not 1 <= steps <= T:
        raise UsageError(f"{steps} sampling steps", fix=f"take 1 to {T} steps: the model has {T} timesteps")
    if steps == 1:
        return (T - 1,)
    return tuple(int(t) for t in np.linspace(0, T - 1, steps).round()[::-1])


def validated_grid(timesteps: Sequence[int], T: int) -> Grid:
    """Return any list of timesteps as a grid; it need not begin at T-1 (a warm start does not) nor end at 0.

    Raises:
        UsageError: the list is empty, leaves 0 ... T-1, or does not strictly decrease.
    """
    grid = tuple(int(t) for t in timesteps)
    outside = [t for t in grid if not 0 <= t < T]
    if outside or not grid:
        what = f"timesteps {outside} are out of range" if outside else "an empty list of timesteps"
        raise UsageError(what, fix=f"give indices from {T - 1} down to 0")
    for t, t_next in pairwise(grid):
        if t <= t_next:
            raise UsageError(f"timestep {t_next} follows {t}", fix="list timesteps from the noisiest to the cleanest")
    return grid


def transitions(grid: Grid) -> Iterator[tuple[int, int]]:
    """Yield (t, t_next) of each step; the last one leads to `CLEAN`."""
    yield from pairwise((*grid, CLEAN))


def strided(schedule: Schedule, grid: Grid) -> Schedule:
    """Return the schedule of the kept timesteps: their ᾱ, and betas recomputed from them (Nichol & Dhariwal 2021, 4).

    Its index k belongs to the training timestep `grid[-1 - k]`, which is what the network must be told.
    """
    return Schedule(schedule.levels[list(reversed(validated_grid(grid, schedule.T)))])


def remap_by_snr(timesteps: Sequence[int], source: Schedule, target: Schedule) -> tuple[int, ...]:
    """Return the timesteps of `target` with the noise levels nearest to those of `timesteps` in `source`.

    Nearness is measured in log-SNR, so that it is the same seen from signal and from noise. The order is kept;
    steps coincide where `target` is coarser, and levels beyond its ends go to its first or last index.

    Raises:
        UsageError: a timestep is no index of `source`.
    """
    outside = [t for t in timesteps if not 0 <= t < source.T]
    if outside:
        raise UsageError(f"timesteps {outside} are out of range", fix=f"give indices from 0 to {source.T - 1}")
    distances = (source.log_snr[list(timesteps), None] - target.log_snr).abs()
    return tuple(distances.argmin(dim=1).tolist())
