"""`msd plan`: fingerprint and plans, explained."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    DatasetArgument,
    DatasetOption,
    JsonOption,
    OverwriteOption,
    PresetOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_dataset,
    parse_numbers,
    print_json,
    progress_bar,
    say,
    verb,
)


@verb
def plan(
    dataset: DatasetArgument = None,
    dataset_option: DatasetOption = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Also show patch, batch and memory for this method.")
    ] = None,
    preset: PresetOption = "recommended",
    plans_name: Annotated[
        str | None, typer.Option("--plans-name", help="Name of the plan, for several side by side [plans].")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory to fit, for example 8G [the GPU's, else half the RAM].")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option("--geometry", help="spacing (common voxel size) or resize (fixed grid).")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Fixed grid of `resize`: 256 for every axis, or 192x256.")
    ] = None,
    keep_aspect: Annotated[
        bool | None, typer.Option("--keep-aspect/--stretch", help="With `resize`: pad instead of stretching.")
    ] = None,
    centre_crop: Annotated[
        str | None, typer.Option("--centre-crop", help="Cut this size from the centre, for example 176x176.")
    ] = None,
    target_spacing: Annotated[
        str | None, typer.Option("--target-spacing", help="Voxel size in mm (z,y,x), for example 3,1,1.")
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option("--normalisation", help="zscore, ct, rescale_0_1, quantile, none, ...")
    ] = None,
    equalise_gamma: Annotated[
        float | None,
        typer.Option("--equalise-gamma", help="First equalise each image's histogram, and take it to this power."),
    ] = None,
    grey_to_rgb: Annotated[
        bool | None,
        typer.Option("--grey-to-rgb/--grey", help="Give images of one channel to the network as three equal ones."),
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", help="Run (name or path) or plan whose geometry and normalisation to copy.")
    ] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Default scale of trainings: tiny, small, full.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of plans and exit.")] = False,
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Measure the dataset and plan 2D and 3D configurations; the plan is a YAML file to read and edit.

    Example: `msd plan 4`, `msd plan 11 --geometry resize --size 128`, `msd plan 4 --method supervised --memory 8G`
    """
    from medsegdiff_cli.paths import open_workspace

    if schema:
        from medsegdiff_cli.artifacts.plan import Plan

        print_json(Plan.model_json_schema())
        return
    dataset = one_dataset(dataset, dataset_option)
    from medsegdiff_cli.workflows.devices import choose_workers
    from medsegdiff_cli.workflows.plan import PlanRequest, find_plan_to_copy, plan_dataset

    overrides = {
        "geometry": geometry,
        "size_voxels": parse_numbers(size, "--size"),
        "keep_aspect": keep_aspect,
        "centre_crop": parse_numbers(centre_crop, "--centre-crop"),
        "target_spacing_mm": parse_numbers(target_spacing, "--target-spacing"),
        "normalisation": normalisation,
        "equalise_gamma": equalise_gamma,
        "grey_to_rgb": grey_to_rgb,
        "default_scale": scale,
    }
    with progress_bar("measuring", quiet=quiet or json_output) as update:
        report = plan_dataset(
            PlanRequest(
                dataset=dataset,
                workspace=open_workspace(workspace),
                plans_name=plans_name,
                method=method,
                preset=preset,
                memory=memory,
                like=find_plan_to_copy(like, open_workspace(workspace)),
                workers=choose_workers(workers),
                overwrite=overwrite,
                overrides={key: value for key, value in overrides.items() if value is not None},
            ),
            progress=lambda done, total: update(done=done, total=total),
        )
    configs = tuple(report.plan.configurations)
    preview = _preview(method, dataset, preset, report.plan.plans_name, workspace, configs) if method else {}
    if json_output:
        print_json({**report.to_json(), "preview": preview})
        return
    for line in report.plan.explanation:
        say(f"- {line}", quiet)
    for config, lines in preview.items():
        say(f"{method}, {config}: " + "; ".join(lines), quiet)
    say(f"{report.path}", quiet)


def _preview(
    method: str, dataset: str, preset: str, plans_name: str, workspace: Path | None, configs: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return, for each configuration, what the method would train with."""
    from medsegdiff_cli.errors import MsdError
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.planning.memory import format_bytes
    from medsegdiff_cli.workflows.devices import choose_device
    from medsegdiff_cli.workflows.run_request import TrainRequest
    from medsegdiff_cli.workflows.run_setup import set_up_run

    lines: dict[str, tuple[str, ...]] = {}
    for config in configs:
        try:
            setup = set_up_run(
                TrainRequest(
                    method=method,
                    dataset=dataset,
                    workspace=open_workspace(workspace),
                    config=config,
                    fold="0",
                    preset=preset,
                    plans_name=plans_name,
                    device=choose_device(None),
                )
            )
        except MsdError as error:
            lines[config] = (error.what,)
            continue
        patch = " x ".join(str(edge) for edge in setup.recipe.patch_size_voxels)
        lines[config] = (
            f"scale {setup.recipe.scale}, {setup.recipe.training.steps} steps",
            f"patch {patch}, batch {setup.recipe.batch_size}",
            f"memory about {format_bytes(setup.patch.forecast_bytes or 0)}",
            *setup.patch.notes,
        )
    return lines
