"""`msd preprocess`: fill the preprocessed store."""

from medsegdiff_cli.cli.shell import (
    ConfigOption,
    DatasetArgument,
    DatasetOption,
    DryRunOption,
    JsonOption,
    PlansNameOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_dataset,
    print_forecast,
    print_json,
    progress_bar,
    say,
    verb,
)


@verb
def preprocess(
    dataset: DatasetArgument = None,
    dataset_option: DatasetOption = None,
    config: ConfigOption = None,
    plans_name: PlansNameOption = "plans",
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Crop, normalise and resample all training and unlabelled images; only what changed is done again.

    Training does this by itself where it is missing. Example: `msd preprocess 4 --config 3d`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.devices import choose_workers
    from medsegdiff_cli.workflows.preprocess import PreprocessRequest, forecast_preprocess, run_preprocess

    request = PreprocessRequest(
        dataset=one_dataset(dataset, dataset_option),
        workspace=open_workspace(workspace),
        config=config,
        plans_name=plans_name,
        workers=choose_workers(workers),
    )
    if dry_run:
        print_forecast(forecast_preprocess(request), json_output)
        return
    with progress_bar("preprocessing", quiet=quiet or json_output) as update:
        folder, report = run_preprocess(request, progress=lambda done, total: update(done=done, total=total))
    if json_output:
        print_json(
            {
                "schema_version": 1,
                "store": str(folder),
                "written": list(report.written),
                "reused": list(report.reused),
                "removed": list(report.removed),
            }
        )
    else:
        say(f"{folder}: {len(report.written)} written, {len(report.reused)} reused", quiet)
