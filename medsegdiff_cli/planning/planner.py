"""The planner: one fingerprint in, one plan with its reasons out."""

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from medsegdiff_cli.artifacts.dataset_folder import DatasetJson
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.fingerprint import Fingerprint
from medsegdiff_cli.artifacts.plan import Configuration, Plan
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.planning.choice import choose_config, what_the_patch_sees
from medsegdiff_cli.planning.geometry import Grid, choose_grid
from medsegdiff_cli.planning.intensity import plan_channel_copies, plan_channels, store_dtype
from medsegdiff_cli.planning.memory import default_scale, format_bytes
from medsegdiff_cli.planning.mirroring import choose_mirror_axes
from medsegdiff_cli.planning.nnunet_rules import Cost, Shape, Strides, plan_patch
from medsegdiff_cli.planning.overrides import PlanOverrides

CostOf = Callable[[int], Cost]


def measured_cost(measure: Callable[[Shape, int, Strides], int], budget_bytes: int) -> Cost:
    """Return a cost in bytes; `measure` forecasts a training step of the real network for (patch, batch, strides)."""
    known: dict[tuple[Shape, int, Strides], float] = {}

    def cost_of(patch: Shape, batch: int, strides: Strides) -> float:
        key = (patch, batch, strides)
        if key not in known:
            known[key] = float(measure(*key))
        return known[key]

    return Cost(of=cost_of, budget=float(budget_bytes), rounding=math.floor)


def make_plan(
    fingerprint: Fingerprint,
    info: DatasetJson,
    *,
    memory_bytes: int,
    cost_of: CostOf,
    memory_source: str = "",
    overrides: PlanOverrides | None = None,
    like: Plan | None = None,
    supported_dims: Collection[int] = (2, 3),
) -> Plan:
    """Plan a dataset; the same input gives the same plan.

    Args:
        memory_bytes: what `cost_of` was given, written down in the plan.
        cost_of: number of network axes (2 or 3) to the cost of a patch with its budget.
        memory_source: where the memory figure comes from, in words.
        like: plan of a run whose geometry, normalisation and patches are taken over, to continue from its weights.
        supported_dims: of the method that the plan is made for.

    Raises:
        UsageError: overrides that do not fit the images or each other.
        ResourceError: not even the smallest patch fits.
    """
    overrides = (overrides or PlanOverrides()).for_axes(len(fingerprint.cases[0].shape_voxels))
    common = _common(fingerprint, info, overrides)
    if like is not None:
        return _like(like, fingerprint, overrides, common)
    grid = choose_grid(fingerprint, overrides)
    channels, channel_reasons = plan_channels(fingerprint, overrides)
    copies, copies_reasons = plan_channel_copies(len(channels), bool(overrides.grey_to_rgb))
    mirror_axes, mirror_reason = _mirroring(fingerprint, overrides, grid.transpose)
    dtype = overrides.store_dtype or store_dtype(channels)
    configurations = _configurations(fingerprint, grid, cost_of, dtype)
    n_labelled = sum(case.part == "Tr" for case in fingerprint.cases)
    config, config_reason = choose_config(
        set(configurations), grid.spacing_mm, grid.median, n_labelled, supported_dims, overrides.default_config
    )
    scale, scale_reason = (overrides.default_scale, "as asked for") if overrides.default_scale else default_scale()
    source = f", {memory_source}" if memory_source else ""
    memory = f"Patches and batches fit into {format_bytes(memory_bytes)}{source}."
    warnings = [what_the_patch_sees(name, content, grid.geometry) for name, content in configurations.items()]
    content: dict[str, Any] = {
        **common,
        "channels": channels,
        "geometry": grid.geometry,
        "keep_aspect": bool(overrides.keep_aspect),
        "interpolation": overrides.interpolation or "cubic",
        "centre_crop": overrides.centre_crop,
        "channel_copies": copies,
        "transpose": grid.transpose,
        "crop": grid.crop,
        "mirror_axes": mirror_axes,
        "default_config": config,
        "default_scale": scale,
        "memory_bytes": memory_bytes,
        "configurations": configurations,
    }
    reasons = [*_data_in_words(fingerprint, info), *grid.sentences, *channel_reasons, *copies_reasons]
    reasons += [config_reason, memory]
    reasons += [f"Trainings have scale '{scale}', {scale_reason}.", *filter(None, warnings), mirror_reason]
    return validate(Plan, {**content, "explanation": reasons}, "plan")


def _common(fingerprint: Fingerprint, info: DatasetJson, overrides: PlanOverrides) -> dict[str, Any]:
    return {
        "dataset": fingerprint.dataset,
        "plans_name": overrides.plans_name,
        "fingerprint_digest": fingerprint.digest(),
        "file_ending": info.file_ending,
        "labels": info.labels,
        "regions_class_order": info.regions_class_order,
    }


def _mirroring(
    fingerprint: Fingerprint, overrides: PlanOverrides, transpose: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    if overrides.mirror_axes is None:
        return choose_mirror_axes(fingerprint.cases, fingerprint.class_names, transpose)
    if any(not 0 <= axis < len(transpose) for axis in overrides.mirror_axes):
        raise UsageError(
            f"mirror_axes {list(overrides.mirror_axes)} do not exist",
            where="plan",
            fix=f"use 0 to {len(transpose) - 1}",
        )
    return overrides.mirror_axes, f"Mirroring along axes {list(overrides.mirror_axes)}, as asked for."


def _configurations(fingerprint: Fingerprint, grid: Grid, cost_of: CostOf, dtype: str) -> dict[str, Configuration]:
    """Return `2d` always, and `3d` when the images have depth."""
    n_axes = len(grid.transpose)
    voxels = math.prod(grid.median) * len(fingerprint.training_cases())
    slices_are_cut = n_axes == 3
    plane = _configuration(
        grid, 2, voxels, cost_of(2), dtype, (grid.n_slices, *grid.median[1:]) if slices_are_cut else None
    )
    has_depth = slices_are_cut and grid.median[0] > 1
    whole_size_is_known = grid.size_voxels is None or len(grid.size_voxels) == n_axes
    if not (has_depth and whole_size_is_known):
        return {"2d": plane}
    return {"2d": plane, "3d": _configuration(grid, 3, voxels, cost_of(3), dtype)}


def _configuration(
    grid: Grid, n_dims: int, voxels: float, cost: Cost, dtype: str, median: tuple[float, ...] | None = None
) -> Configuration:
    """Plan patch and batch of the last `n_dims` axes; the axes before them keep each case's own grid."""
    # On a fixed grid the physical spacing differs from case to case, so that all axes count alike.
    spacing = grid.spacing_mm[-n_dims:] if grid.spacing_mm else (1.0,) * n_dims
    planned = plan_patch(spacing, grid.median[-n_dims:], voxels, cost)
    n_own = len(grid.transpose) - n_dims
    content = {
        "spacing_mm": (*(None,) * n_own, *spacing) if grid.spacing_mm else None,
        "size_voxels": grid.size_voxels[-n_dims:] if grid.size_voxels else None,
        "median_shape_voxels": tuple(round(edge) for edge in median or grid.median),
        "patch_size_voxels": planned.topology.patch,
        "batch_size": planned.batch,
        "strides": planned.topology.strides,
        "batch_dice": n_dims == 2,
        "store_dtype": dtype,
    }
    return validate(Configuration, content, "plan: configurations")


def _like(like: Plan, fingerprint: Fingerprint, overrides: PlanOverrides, common: dict[str, Any]) -> Plan:
    """Return the other run's geometry and normalisation for this dataset."""
    if overrides.geometric_keys():
        raise UsageError(
            f"{', '.join(overrides.geometric_keys())} cannot be given with --like",
            where="plan",
            fix="leave them out: the geometry is the other run's",
        )
    n_axes = len(fingerprint.cases[0].shape_voxels)
    if n_axes != like.n_dims_of_images:
        raise UsageError(
            f"the other run's images have {like.n_dims_of_images} axes, these have {n_axes}",
            where="--like",
            fix="plan this dataset on its own",
        )
    reasons = [f"Geometry, patches and normalisation are those of {like.dataset} ({like.plans_name})."]
    same_number = len(like.channels) == len(fingerprint.channel_names)
    if same_number and overrides.normalisation is None and overrides.clip is None and overrides.equalise_gamma is None:
        own = zip(like.channels, fingerprint.channel_names, fingerprint.whole_intensity, strict=True)
        channels = tuple(
            channel.model_copy(update={"name": name, "training_range": (whole.min, whole.max)})
            for channel, name, whole in own
        )
    else:
        channels, channel_reasons = plan_channels(fingerprint, overrides)
        reasons += ["The channels are normalised for this dataset, since they differ.", *channel_reasons]
    to_rgb = like.channel_copies > 1 if overrides.grey_to_rgb is None else overrides.grey_to_rgb
    copies, copies_reasons = plan_channel_copies(len(channels), to_rgb)
    reasons += copies_reasons
    mirror_axes, mirror_reason = _mirroring(fingerprint, overrides, like.transpose)
    content = {
        **like.model_dump(),
        **common,
        "channels": channels,
        "channel_copies": copies,
        "mirror_axes": mirror_axes,
        "default_config": overrides.default_config or like.default_config,
        "default_scale": overrides.default_scale or like.default_scale,
        "explanation": (*reasons, mirror_reason),
    }
    return validate(Plan, content, "plan")


def _data_in_words(fingerprint: Fingerprint, info: DatasetJson) -> list[str]:
    parts = Counter(case.part for case in fingerprint.cases)
    axes = len(fingerprint.cases[0].shape_voxels)
    n_channels = len(fingerprint.channel_names)
    channels = "1 channel" if n_channels == 1 else f"{n_channels} channels"
    sentences = [f"{parts['Tr']} labelled and {parts['Un']} unlabelled {axes}D images with {channels}."]
    if not parts["Tr"]:
        sentences.append("No labels: sizes and intensities are planned on the unlabelled images.")
    domains = Counter(info.domains.get(case.case, "") or "unnamed" for case in fingerprint.cases)
    if len(domains) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in sorted(domains.items()))
        sentences.append(f"{len(domains)} domains ({listed}).")
    return sentences
