"""`msd sample`: synthetic images and labels from a pretrained generative model."""

import math
from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    WorkspaceOption,
    one_of,
    print_forecast,
    print_json,
    progress_bar,
    say,
    verb,
)
from medsegdiff_cli.errors import UsageError


@verb
def sample(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A pretraining (hybrid or diffusion): its name, folder or bundle.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Dataset folder to write [./RUN_samples].")
    ] = None,
    dataset: Annotated[
        int | None, typer.Option("--dataset", "-d", help="With --name: id of the dataset in the workspace.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="With --dataset: its name.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of samples in all.")] = 16,
    sampler: Annotated[str | None, typer.Option("--sampler", help="ddpm, ddim or dpm++ [dpm++].")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps [100].")] = None,
    route: Annotated[
        str, typer.Option("--route", help="joint: image and mask walk together; cheap: the image alone, then its mask.")
    ] = "joint",
    mask_start: Annotated[
        float, typer.Option("--mask-start", help="Where masks start on the joint route, y_T; any number will do.")
    ] = 0.0,
    fold: Annotated[str | None, typer.Option("--fold", "-f", help="Of a run with several folds.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images per network call [by their size].")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="DATASET", help="Training images to compare samples with [those of the run]."
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Draw new images with their labels from a hybrid pretraining (images alone from a diffusion pretraining).

    The output is a dataset folder that says in its dataset.json that it is synthetic, with a contact sheet. Samples are
    compared with the training images: those that may be copies are named. The same command again finishes what is
    missing; a larger --count adds samples.

    Example: `msd sample pretrain-hybrid__2d --dataset 90 --name SyntheticLungs --count 16`
    """
    from medsegdiff_cli.methods.base import Sampling
    from medsegdiff_cli.paths import FOLD_PREFIX, new_dataset_folder, open_workspace
    from medsegdiff_cli.workflows.models import find_models
    from medsegdiff_cli.workflows.sample import run_sampling
    from medsegdiff_cli.workflows.sample_request import SampleRequest, prepare_sampling

    one_of(route, ("joint", "cheap"), "--route")
    place = open_workspace(workspace)
    is_numbered = dataset is not None and name is not None
    if (is_numbered and output is not None) or (dataset is None) != (name is None):
        raise UsageError(
            "where samples go is not clear", where="--output", fix="give --output FOLDER, or --dataset ID --name NAME"
        )
    if not math.isfinite(mask_start):
        raise UsageError(f"masks cannot start at {mask_start}", where="--mask-start", fix="give a finite number")
    run = find_models([model], place)[0]
    if is_numbered:
        folder = new_dataset_folder(place, dataset or 0, name or "")
    else:
        named = run.parent if run.name.startswith(FOLD_PREFIX) else run
        folder = output or Path(f"{named.stem if run.is_file() else named.name}_samples")
    prepared = prepare_sampling(
        SampleRequest(
            model=run,
            output=folder.expanduser(),
            workspace=place,
            fold=fold,
            count=count,
            sampling=Sampling(sampler=sampler, steps=steps),
            route=route,  # type: ignore[arg-type]  # checked by one_of
            mask_start=mask_start,
            seed=seed,
            batch=batch,
            against=against,
            device=device,
            overwrite=overwrite,
        )
    )
    if dry_run:
        from medsegdiff_cli.workflows.sample_forecast import forecast_sampling

        print_forecast(forecast_sampling(prepared), json_output)
        return
    with progress_bar("sampling", quiet=quiet or json_output) as update:
        report = run_sampling(prepared, lambda done, total, what: update(done=done, total=total, note=what))
    for sentence in report.memorisation.sentences() if report.memorisation else ():
        say(sentence, quiet)
    if json_output:
        print_json({"schema_version": 1, **report.to_json()})
    else:
        say(f"{report.dataset}: {len(report.written)} written, {len(report.reused)} already there", quiet)
        say(f"contact sheet: {report.contact_sheet}", quiet)
