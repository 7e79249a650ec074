"""Patch and batch of a training: the plan's, within the scale's limits and the memory, for the network at hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medsegdiff_cli.artifacts.plan import Configuration, Plan, Scale
from medsegdiff_cli.errors import ResourceError, UsageError
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.planning.nnunet_rules import SMALLEST_BATCH, Shape, Strides, divisor_of
from medsegdiff_cli.planning.scales import ScaleTable, scale_table

Measure = Callable[[Shape, int, Strides], int]


@dataclass(frozen=True, kw_only=True)
class ResolvedPatch:
    """What a training uses.

    Attributes:
        strides: one entry a level transition of the network; 1s where the plan goes no deeper.
        forecast_bytes: peak memory of a training step, when it was measured.
        notes: what was limited, and why.
    """

    patch_size: Shape
    batch_size: int
    strides: Strides
    forecast_bytes: int | None = None
    notes: tuple[str, ...] = ()


def resolve_batch(
    plan: Plan,
    config: str | None,
    scale: Scale,
    *,
    measure: Measure | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    n_transitions: int | None = None,
    strides: Strides | None = None,
    max_batch: int | None = None,
    memory_bytes: int | None = None,
) -> ResolvedPatch:
    """Settle patch and batch when a training starts.

    The patch is the plan's, at most as large as the scale allows, and shrinks along the axis that covers most of the
    median image until two patches fit the memory. What the user asked for is never changed.

    Args:
        measure: (patch, batch, strides) to peak bytes of a training step; None trusts the plan.
        patch_size, batch_size: what the user or the recipe asked for.
        n_transitions: downsampling steps of the network; None takes the scale's, else the plan's.
        strides: of a network that exists already; None takes the plan's, cut to the network's depth.
        max_batch: upper limit in place of the plan's, when no batch size was asked for.
        memory_bytes: None takes the plan's.

    Raises:
        UsageError: the patch asked for is not divisible by the strides.
        ResourceError: not even the smallest patch fits.
    """
    _, configuration = plan.configuration(config)
    n_dims = len(configuration.patch_size_voxels)
    table = scale_table(scale, n_dims)
    budget = memory_bytes or plan.memory_bytes
    if n_transitions is None:
        n_transitions = _transitions(configuration, table)
    if strides is None:
        strides = fit_strides(configuration.strides, n_transitions, n_dims)
    strides = tuple(tuple(step) for step in strides)
    least_batch = batch_size or SMALLEST_BATCH
    notes: list[str] = []
    if patch_size is not None:
        patch = _checked(tuple(patch_size), divisor_of(strides, n_dims))
    else:
        patch = _within_scale(configuration, table, strides, scale, notes)
        if measure is not None:
            patch = _within_memory(patch, configuration, strides, budget, measure, least_batch, notes)
    batch = batch_size or _batch_for(patch, configuration, table, strides, budget, measure, max_batch)
    forecast = None if measure is None else measure(patch, batch, strides)
    if forecast is not None and forecast > budget:
        notes.append(
            f"The patch and batch asked for need about {format_bytes(forecast)}, more than {format_bytes(budget)}."
        )
    return ResolvedPatch(
        patch_size=patch, batch_size=batch, strides=strides, forecast_bytes=forecast, notes=tuple(notes)
    )


def fit_strides(strides: Strides, n_transitions: int, n_dims: int) -> Strides:
    """Return the first strides, one a level transition of the network; beyond them levels keep the resolution."""
    return (*strides, *((1,) * n_dims,) * n_transitions)[:n_transitions]


def _transitions(configuration: Configuration, table: ScaleTable) -> int:
    return len(configuration.strides) if table.channel_mult is None else len(table.channel_mult) - 1


def _checked(patch: Shape, divisor: Shape) -> Shape:
    if len(patch) != len(divisor) or any(edge <= 0 or edge % d for edge, d in zip(patch, divisor, strict=False)):
        nearest = tuple(max(d, round(edge / d) * d) for edge, d in zip(patch, divisor, strict=False))
        raise UsageError(
            f"patch {list(patch)} does not fit a network that divides its axes by {list(divisor)}",
            where="patch_size_voxels",
            fix=f"for example {list(nearest)}" if len(patch) == len(divisor) else f"give {len(divisor)} edges",
        )
    return patch


def _within_scale(
    configuration: Configuration, table: ScaleTable, strides: Strides, scale: Scale, notes: list[str]
) -> Shape:
    divisor = divisor_of(strides, len(configuration.patch_size_voxels))
    planned = configuration.patch_size_voxels
    patch = tuple(math.ceil(edge / d) * d for edge, d in zip(planned, divisor, strict=True))
    while math.prod(patch) > table.max_patch_voxels:
        smaller = _smaller(patch, divisor, configuration)
        if smaller is None:
            break
        patch = smaller
    if math.prod(patch) < math.prod(planned):
        notes.append(f"Scale '{scale}' limits the patch to {_times(patch)} voxels (plan: {_times(planned)}).")
    return patch


def _within_memory(
    patch: Shape,
    configuration: Configuration,
    strides: Strides,
    budget: int,
    measure: Measure,
    batch: int,
    notes: list[str],
) -> Shape:
    divisor = divisor_of(strides, len(patch))
    first = patch
    while (needed := measure(patch, batch, strides)) > budget:
        # Memory is affine in the voxels, so this bound is never below what fits, and saves measurements.
        bound = math.prod(patch) * budget / needed
        while math.prod(patch) > bound:
            smaller = _smaller(patch, divisor, configuration)
            if smaller is None:
                raise ResourceError(
                    f"{batch} patches of {_times(patch)} voxels need more than {format_bytes(budget)} and cannot be "
                    "made smaller",
                    where="memory of the plan",
                    fix="choose a smaller network (--scale small) or batch (--set training.batch_size=N), or plan for "
                    "more memory (msd plan --memory)",
                )
            patch = smaller
    if patch != first:
        notes.append(f"Memory of {format_bytes(budget)} limits the patch to {_times(patch)} voxels.")
    return patch


def _smaller(patch: Shape, divisor: Shape, configuration: Configuration) -> Shape | None:
    """Shorten the axis that covers most of the median image by one divisor; None when no axis can be."""
    median = configuration.median_shape_voxels[-len(patch) :]
    can_shrink = [axis for axis in range(len(patch)) if patch[axis] > 2 * divisor[axis]]
    if not can_shrink:
        return None
    axis = max(can_shrink, key=lambda a: (patch[a] / median[a], a))
    return tuple(edge - divisor[a] * (a == axis) for a, edge in enumerate(patch))


def _batch_for(
    patch: Shape,
    configuration: Configuration,
    table: ScaleTable,
    strides: Strides,
    budget: int,
    measure: Measure | None,
    max_batch: int | None,
) -> int:
    voxels = math.prod(patch)
    # A smaller patch than the plan's takes more of them, up to the same number of voxels.
    planned = math.prod(configuration.patch_size_voxels) * configuration.batch_size
    limits = [table.max_batch_voxels // voxels, table.max_batch, planned // voxels if max_batch is None else max_batch]
    if measure is not None:
        one, two = measure(patch, 1, strides), measure(patch, 2, strides)
        limits.append((budget - one) // max(two - one, 1) + 1)
    return max(SMALLEST_BATCH, min(limits))


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
